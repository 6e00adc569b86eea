package host

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"

	goplugin "github.com/hashicorp/go-plugin"
	"google.golang.org/grpc"

	"github.com/gjallar-im/gjallar/plugins/wire"
)

// rogueMode says what a rogue does wrong.
const rogueMode = "GJALLAR_TEST_ROGUE"

// rogue speaks the protocol, and abuses it.
type rogue struct {
	goplugin.NetRPCUnsupportedPlugin
	wire.UnimplementedBackendServer
	mode   string
	opened chan struct{}
}

func rogueMain() {
	r := &rogue{mode: os.Getenv(rogueMode), opened: make(chan struct{})}
	switch r.mode {
	case "no handshake":
		fmt.Println("hello, I am no plugin")
		_, _ = io.Copy(io.Discard, os.Stdin)
		return
	case "endless handshake":
		for {
			if _, err := os.Stdout.WriteString("1|1|unix|"); err != nil {
				return
			}
		}
	case "silent":
		_, _ = io.Copy(io.Discard, os.Stdin)
		return
	case "exits":
		fmt.Fprintln(os.Stderr, "I do not feel like it")
		os.Exit(7)
	}
	// go-plugin on the host's side dies of such a line.
	fmt.Fprintln(os.Stderr, `{"@message": 1, "@level": [], "@timestamp": {}}`)
	fmt.Fprintln(os.Stderr, strings.Repeat("long ", 100_000))
	goplugin.Serve(&goplugin.ServeConfig{
		HandshakeConfig:  wire.Handshake,
		VersionedPlugins: map[int]goplugin.PluginSet{wire.Version: {wire.PluginName: r}},
		GRPCServer:       goplugin.DefaultGRPCServer,
	})
}

func (r *rogue) GRPCServer(_ *goplugin.GRPCBroker, s *grpc.Server) error {
	wire.RegisterBackendServer(s, r)
	return nil
}

func (r *rogue) GRPCClient(context.Context, *goplugin.GRPCBroker, *grpc.ClientConn) (any, error) {
	return nil, nil
}

var rogueInfos = map[string]*wire.Info{
	"bad protocol": {Protocol: "../etc", Schema: []byte(`{}`)},
	"bad schema":   {Protocol: "rogue", Schema: []byte(`{"type": 5}`)},
	"no schema":    {Protocol: "rogue"},
	"file schema":  {Protocol: "rogue", Schema: []byte(`{"$ref": "file:///etc/hosts"}`)},
	"huge info":    {Protocol: "rogue", Schema: []byte(`"` + strings.Repeat("x", 8<<20) + `"`)},
}

func (r *rogue) Describe(context.Context, *wire.DescribeRequest) (*wire.Info, error) {
	if info := rogueInfos[r.mode]; info != nil {
		return info, nil
	}
	return &wire.Info{Protocol: "rogue", Schema: []byte(`{}`)}, nil
}

func (r *rogue) Open(context.Context, *wire.OpenRequest) (*wire.OpenReply, error) {
	close(r.opened)
	return &wire.OpenReply{}, nil
}

func (r *rogue) Close(context.Context, *wire.CloseRequest) (*wire.CloseReply, error) {
	return &wire.CloseReply{}, nil
}

// Commands answers each command twice, once wrongly, and one that does not exist.
func (r *rogue) Commands(stream grpc.BidiStreamingServer[wire.CommandBatch, wire.ResultBatch]) error {
	for {
		batch, err := stream.Recv()
		if err != nil {
			return nil
		}
		for _, c := range batch.Commands {
			err := stream.Send(&wire.ResultBatch{Results: []*wire.Result{
				{Seq: 1 << 40, Outcome: wire.Outcome_OUTCOME_DELIVERED},
				{Seq: c.Seq, Outcome: 77},
				{Seq: c.Seq, Outcome: wire.Outcome_OUTCOME_DELIVERED},
				nil,
			}})
			if err != nil {
				return err
			}
		}
	}
}

var rogueEvents = map[string][]*wire.Event{
	"empty events":  {{Seq: 1}, {Seq: 1}, {Seq: 2, Body: &wire.Body{}}},
	"unknown enums": {{Seq: 1, Body: &wire.Body{Is: &wire.Body_Member{Member: &wire.Member{Action: "explode"}}}}},
	"huge event": {{Seq: 1, Body: &wire.Body{Is: &wire.Body_Message{Message: &wire.Message{
		Text: []*wire.Node{{Text: strings.Repeat("x", 64<<20)}}}}}}},
}

// Events tells nonsense, then something that is well-formed.
func (r *rogue) Events(stream grpc.BidiStreamingServer[wire.ReceiptBatch, wire.EventBatch]) error {
	select {
	case <-r.opened:
	case <-stream.Context().Done():
		return nil
	}
	if r.mode == "flood" {
		for {
			batch := &wire.EventBatch{}
			for range 500 {
				batch.Events = append(batch.Events, &wire.Event{Body: &wire.Body{Is: &wire.Body_Typing{Typing: &wire.Typing{}}}})
			}
			if err := stream.Send(batch); err != nil {
				return err
			}
		}
	}
	if err := stream.Send(&wire.EventBatch{Events: rogueEvents[r.mode]}); err != nil {
		return err
	}
	err := stream.Send(&wire.EventBatch{Events: []*wire.Event{
		nil, {Seq: 9, Id: "last", Body: &wire.Body{Is: &wire.Body_Typing{Typing: &wire.Typing{On: true}}}},
	}})
	if err != nil {
		return err
	}
	<-stream.Context().Done()
	return nil
}

func (r *rogue) Ping(context.Context, *wire.PingRequest) (*wire.PingReply, error) {
	return &wire.PingReply{}, nil
}
