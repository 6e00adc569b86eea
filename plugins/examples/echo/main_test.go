package main

import (
	"context"
	"os"
	"testing"

	"github.com/gjallar-im/gjallar/backends"
	"github.com/gjallar-im/gjallar/backends/backendtest"
	"github.com/gjallar-im/gjallar/backends/richtext"
	"github.com/gjallar-im/gjallar/plugins/host"
)

// The test binary, started again with this variable, is the plugin.
const beEcho = "GJALLAR_TEST_BE_ECHO"

func TestMain(m *testing.M) {
	if os.Getenv(beEcho) != "" {
		main()
	}
	os.Exit(m.Run())
}

func TestOneMessageCrosses(t *testing.T) {
	p, err := host.New(host.Options{Name: "echo", Command: []string{os.Args[0]}, Env: []string{beEcho + "=1"}})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close(context.Background())
	h := backendtest.NewHost(t)
	n, err := p.Open(t.Context(), []byte(`{}`), h)
	if err != nil {
		t.Fatal(err)
	}
	h.WaitPhase(backends.Ready)
	replies := make(chan backends.Result, 1)
	err = n.Send(t.Context(), &backends.Command{
		ID: "1", Chat: backends.ChatKey{Chat: "tea"}, Body: &backends.Message{Text: richtext.Plain("hello")},
	}, func(r backends.Result) { replies <- r })
	if err != nil {
		t.Fatal(err)
	}
	if r := <-replies; r.Outcome != backends.Delivered || r.IDs[0] != "1" {
		t.Errorf("result %+v", r)
	}
	if _, m := backendtest.NextBody[*backends.Message](h, nil); m.Text.Plain() != "hello" {
		t.Errorf("echo %q", m.Text.Plain())
	}
	if err := n.Close(t.Context()); err != nil {
		t.Error(err)
	}
}
