// Package host runs backends in processes of their own. A [Plugin] is a
// backends.Backend: each network that it opens is a process, which is watched,
// and started again when it dies. A program that misbehaves, hangs or dies costs
// its own network a pause, and nobody else anything.
//
// What the callers of a backends.Network see of a process's death: commands that
// it had in hand end as Interrupted, those that it did not have yet as Retry; a
// NetworkState Disconnected comes, and after the restart what the backend says of
// its connection, until Ready.
//
// Order is kept within a chat, as the contract says, and not between chats; events
// of no chat, NetworkState among them, count as a chat of their own. The functions
// that Send and Deliver are given should not block.
package host

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"regexp"
	"slices"
	"sync"
	"time"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/gjallar-im/gjallar/backends"
	"github.com/gjallar-im/gjallar/plugins/wire"
)

var (
	// ErrDown means that the network's process is not running at the moment. It is
	// being started again.
	ErrDown = errors.New("the backend's process is not running")
	// ErrClosed means that the network or the plugin was closed.
	ErrClosed = errors.New("closed")
)

// Options of a Plugin.
type Options struct {
	Name    string   // for logs and errors
	Command []string // the program and its arguments
	// Env holds "NAME=value" pairs that the process gets besides PATH and a few
	// harmless others: it does not inherit our environment.
	Env []string
	// Checksum pins the program: its SHA-256 in hexadecimal, "" for any.
	Checksum string
	Log      *slog.Logger // nil: slog.Default
	Restarts Restarts
	Timeouts Timeouts
	Limits   Limits
}

// Limits bound what a process may take, on Linux; 0 is no limit. A process that
// asks for more dies of it, or copes.
type Limits struct {
	Memory int64 // bytes of writable memory of its own; a Go program needs some 200 MiB to breathe
	Files  int64 // open at the same time
}

// Timeouts bound what a plugin may take. Zero fields have the values in brackets.
type Timeouts struct {
	Start     time.Duration // until it has shaken hands [10 s]
	Open      time.Duration // [30 s]
	Call      time.Duration // Join, Leave, ResolveChat … [2 min]
	Close     time.Duration // [30 s]
	Exit      time.Duration // after Close, until it is killed [2 s]
	Ping      time.Duration // without an answer it is killed [30 s]
	PingEvery time.Duration // [15 s]
}

func (t Timeouts) withDefaults() Timeouts {
	t.Start = cmp.Or(t.Start, 10*time.Second)
	t.Open = cmp.Or(t.Open, 30*time.Second)
	t.Call = cmp.Or(t.Call, 2*time.Minute)
	t.Close = cmp.Or(t.Close, 30*time.Second)
	t.Exit = cmp.Or(t.Exit, 2*time.Second)
	t.Ping = cmp.Or(t.Ping, 30*time.Second)
	t.PingEvery = cmp.Or(t.PingEvery, 15*time.Second)
	return t
}

// Plugin is a backend that runs in other processes.
type Plugin struct {
	options Options
	log     *slog.Logger
	info    backends.Info
	schema  *jsonschema.Schema

	mu       sync.Mutex
	spare    *process          // started, not used yet; guarded by mu
	networks map[*network]bool // open; guarded by mu
	closed   bool              // guarded by mu
	opening  sync.WaitGroup    // calls of Open; Add guarded by mu
}

var _ backends.Backend = (*Plugin)(nil)

// New starts the program once, to learn what it is; that process serves the first
// network. The error is ErrChecksum, wrapped, if the program is not the one that
// was pinned.
func New(o Options) (*Plugin, error) {
	if len(o.Command) == 0 {
		return nil, fmt.Errorf("plugin %s: no command", o.Name)
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	o.Command, o.Env = slices.Clone(o.Command), slices.Clone(o.Env)
	o.Restarts, o.Timeouts = o.Restarts.withDefaults(), o.Timeouts.withDefaults()
	p := &Plugin{options: o, log: o.Log.With("plugin", o.Name), networks: map[*network]bool{}}
	ctx, cancel := context.WithTimeout(context.Background(), o.Timeouts.Start)
	defer cancel()
	proc, err := start(ctx, &p.options, p.log)
	if err != nil {
		return nil, err
	}
	info, err := proc.rpc.Describe(ctx, &wire.DescribeRequest{})
	if err == nil {
		p.info = info.Unpack()
		p.schema, err = check(&p.info)
	}
	if err != nil {
		proc.kill()
		return nil, fmt.Errorf("describe plugin %s: %w", o.Name, wire.Error(err))
	}
	p.spare = proc
	return p, nil
}

var protocolName = regexp.MustCompile(`^[a-z][a-z0-9]{0,31}$`)

// check says whether a description can be used, and compiles its schema.
func check(info *backends.Info) (*jsonschema.Schema, error) {
	if !protocolName.MatchString(info.Protocol) {
		return nil, fmt.Errorf("protocol %.40q is not of lower-case letters and digits", info.Protocol)
	}
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(info.Schema))
	if err != nil {
		return nil, fmt.Errorf("schema: %w", err)
	}
	compiler := jsonschema.NewCompiler()
	compiler.UseLoader(jsonschema.SchemeURLLoader{}) // a plugin's schema refers to no files of ours
	if err := compiler.AddResource("plugin:schema", doc); err != nil {
		return nil, fmt.Errorf("schema: %w", err)
	}
	schema, err := compiler.Compile("plugin:schema")
	if err != nil {
		return nil, fmt.Errorf("schema: %w", err)
	}
	return schema, nil
}

// Describe implements backends.Backend with what the program said at first.
func (p *Plugin) Describe() backends.Info { return p.info }

// Open implements backends.Backend: it starts a process for the network. The
// error is a Refusal, RefusedInvalid, if the configuration does not satisfy the
// schema. The Network also is a backends.Resolver and a backends.Directory if the
// backend's is.
func (p *Plugin) Open(ctx context.Context, config json.RawMessage, host backends.Host) (backends.Network, error) {
	if err := p.validate(config); err != nil {
		return nil, err
	}
	proc, err := p.takeSpare()
	if err != nil {
		return nil, err
	}
	defer p.opening.Done()
	if !proc.alive() {
		if proc, err = start(ctx, &p.options, p.log); err != nil {
			return nil, err
		}
	}
	n := newNetwork(p, slices.Clone(config), host)
	s := n.begin(proc)
	if err := s.open(ctx, config); err != nil {
		n.cancel()
		return nil, err
	}
	p.mu.Lock()
	p.networks[n] = true
	p.mu.Unlock()
	n.run(s)
	return withAbilities(n, s.ability), nil
}

// takeSpare returns the spare process, nil if there is none, and counts the
// caller as opening.
func (p *Plugin) takeSpare() (*process, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil, ErrClosed
	}
	p.opening.Add(1)
	proc := p.spare
	p.spare = nil
	return proc, nil
}

// validate does not repeat values of the configuration: they may be secret.
func (p *Plugin) validate(config json.RawMessage) error {
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(config))
	if err != nil {
		return &backends.Refusal{Code: backends.RefusedInvalid, Message: "the configuration is not JSON"}
	}
	if err := p.schema.Validate(doc); err != nil {
		where := "the configuration does not satisfy the backend's schema"
		if v, ok := errors.AsType[*jsonschema.ValidationError](err); ok {
			for len(v.Causes) > 0 {
				v = v.Causes[0]
			}
			where = fmt.Sprintf("%s: see /%s (%s)", where, joinPath(v.InstanceLocation), joinPath(v.ErrorKind.KeywordPath()))
		}
		return &backends.Refusal{Code: backends.RefusedInvalid, Message: where}
	}
	return nil
}

func joinPath(parts []string) string {
	var b bytes.Buffer
	for i, part := range parts {
		if i > 0 {
			b.WriteByte('/')
		}
		b.WriteString(part)
	}
	return b.String()
}

// Close closes all networks, within ctx, and ends their processes.
func (p *Plugin) Close(ctx context.Context) error {
	p.mu.Lock()
	p.closed = true
	spare := p.spare
	p.spare = nil
	p.mu.Unlock()
	if spare != nil {
		spare.shutDown(p.options.Timeouts.Exit)
	}
	p.opening.Wait()
	p.mu.Lock()
	networks := p.networks
	p.networks = map[*network]bool{}
	p.mu.Unlock()
	errs := make(chan error, len(networks))
	for n := range networks {
		go func() { errs <- n.Close(ctx) }()
	}
	var err error
	for range networks {
		err = errors.Join(err, <-errs)
	}
	return err
}
