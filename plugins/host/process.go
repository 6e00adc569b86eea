package host

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	goplugin "github.com/hashicorp/go-plugin"
	"github.com/hashicorp/go-plugin/runner"
	"google.golang.org/grpc"

	"github.com/gjallar-im/gjallar/plugins/wire"
)

// ErrChecksum means that a plugin's binary is not the one that was pinned.
var ErrChecksum = errors.New("checksum does not match")

// process is a running plugin that has shaken hands.
type process struct {
	child  *child
	client *goplugin.Client
	broker *goplugin.GRPCBroker
	rpc    wire.BackendClient
	wg     sync.WaitGroup // what serves the process
}

// start runs the plugin's program and waits for its handshake, within ctx.
func start(ctx context.Context, o *Options, log *slog.Logger) (*process, error) {
	if err := verify(o.Command[0], o.Checksum); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, o.Timeouts.Start)
	defer cancel()
	var running atomic.Pointer[child]
	client := goplugin.NewClient(&goplugin.ClientConfig{
		HandshakeConfig:  wire.Handshake,
		VersionedPlugins: map[int]goplugin.PluginSet{wire.Version: {wire.PluginName: &dispensed{}}},
		AllowedProtocols: []goplugin.Protocol{goplugin.ProtocolGRPC},
		AutoMTLS:         true,
		SkipHostEnv:      true,
		StartTimeout:     o.Timeouts.Start,
		Logger:           quiet,
		SyncStdout:       &lines{log: log},
		SyncStderr:       &lines{log: log},
		GRPCDialOptions: []grpc.DialOption{
			grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(wire.MaxMessage)),
			grpc.WithInitialWindowSize(wire.StreamWindow), grpc.WithInitialConnWindowSize(wire.ConnWindow),
		},
		RunnerFunc: func(_ hclog.Logger, cmd *exec.Cmd, _ string) (runner.Runner, error) {
			env := append(cmd.Env, wire.LogLevelVariable+"="+leastLevel(log).String())
			c, err := newChild(o.Command, append(env, o.Env...), o.Limits, &lines{log: log})
			if err != nil {
				return nil, err
			}
			running.Store(c)
			return c, nil
		},
	})
	stop := context.AfterFunc(ctx, func() {
		if c := running.Load(); c != nil {
			_ = c.Kill(context.Background())
		}
	})
	defer stop()
	raw, err := dispense(client)
	p := &process{child: running.Load(), client: client}
	if err != nil {
		if p.child != nil {
			p.kill()
		}
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return nil, fmt.Errorf("start plugin %s: %s does not answer as a plugin does: %w", o.Name, o.Command[0], err)
	}
	p.broker, p.rpc = raw.broker, wire.NewBackendClient(raw.conn)
	return p, nil
}

func dispense(client *goplugin.Client) (*dispensed, error) {
	protocol, err := client.Client()
	if err != nil {
		return nil, err
	}
	raw, err := protocol.Dispense(wire.PluginName)
	if err != nil {
		return nil, err
	}
	return raw.(*dispensed), nil
}

// verify compares the SHA-256 of a program with a pinned one, in hexadecimal, if
// there is one. The file must not be writable by those whom the pin is against:
// it could change between this and its start.
func verify(program, pinned string) error {
	if pinned == "" {
		return nil
	}
	want, err := hex.DecodeString(pinned)
	if err != nil || len(want) != sha256.Size {
		return fmt.Errorf("verify plugin: the pinned checksum is no SHA-256 in hexadecimal")
	}
	path, err := exec.LookPath(program)
	if err != nil {
		return fmt.Errorf("verify plugin: %w", err)
	}
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("verify plugin: %w", err)
	}
	defer f.Close()
	sum := sha256.New()
	if _, err := io.Copy(sum, f); err != nil {
		return fmt.Errorf("verify plugin: %w", err)
	}
	if subtle.ConstantTimeCompare(sum.Sum(nil), want) != 1 {
		return fmt.Errorf("verify plugin %s: %w", path, ErrChecksum)
	}
	return nil
}

// dead is closed when the process is.
func (p *process) dead() <-chan struct{} { return p.child.exited }

// alive is false for no process. What is left of a dead one is cleared away.
func (p *process) alive() bool {
	if p == nil {
		return false
	}
	select {
	case <-p.dead():
		p.kill()
		return false
	default:
		return true
	}
}

// shutDown asks the process to end and kills it if it has not after patience.
func (p *process) shutDown(patience time.Duration) {
	timer := time.AfterFunc(patience, func() { _ = p.child.Kill(context.Background()) })
	defer timer.Stop()
	p.client.Kill()
	p.wg.Wait()
}

// kill ends the process at once.
func (p *process) kill() {
	_ = p.child.Kill(context.Background())
	p.client.Kill()
	p.wg.Wait()
}

// serve makes services available to the process and returns their broker ID.
func (p *process) serve(register func(*grpc.Server)) uint32 {
	id := p.broker.NextId()
	p.wg.Go(func() {
		p.broker.AcceptAndServe(id, func(opts []grpc.ServerOption) *grpc.Server {
			s := grpc.NewServer(append(opts, grpc.MaxRecvMsgSize(wire.MaxMessage), grpc.MaxConcurrentStreams(1000))...)
			register(s)
			return s
		})
	})
	return id
}

// dispensed is go-plugin's view of the host's side.
type dispensed struct {
	goplugin.NetRPCUnsupportedPlugin
	broker *goplugin.GRPCBroker
	conn   *grpc.ClientConn
}

// GRPCServer implements goplugin.GRPCPlugin; it is the plugin's side.
func (*dispensed) GRPCServer(*goplugin.GRPCBroker, *grpc.Server) error {
	return errors.New("this is the host's side")
}

// GRPCClient implements goplugin.GRPCPlugin.
func (*dispensed) GRPCClient(_ context.Context, broker *goplugin.GRPCBroker, conn *grpc.ClientConn) (any, error) {
	return &dispensed{broker: broker, conn: conn}, nil
}
