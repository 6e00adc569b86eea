package main

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"os/exec"
	"slices"
	"strings"

	"github.com/gjallar-im/gjallar/config"
	"github.com/gjallar-im/gjallar/homeserver/matrix"
)

// configCommand is `gjallar config`: the annotated defaults, `config check FILE`,
// or with -protocol what a network of that protocol can be configured with.
func configCommand(_ context.Context, t *terminal, args []string) error {
	fs := flag.NewFlagSet("config", flag.ContinueOnError)
	fs.SetOutput(t.err)
	protocol := fs.String("protocol", "", "print the JSON Schema of the keys of a network of protocol `NAME`")
	if err := parse(fs, args); err != nil {
		return err
	}
	switch {
	case *protocol != "":
		b, ok := builtin[*protocol]
		if !ok {
			return fmt.Errorf("no built-in protocol %q; there are %s", *protocol, protocols())
		}
		var out bytes.Buffer
		if err := json.Indent(&out, b().Describe().Schema, "", "  "); err != nil {
			return err
		}
		fmt.Fprintln(t.out, out.String())
		return nil
	case fs.NArg() == 0:
		_, err := fmt.Fprint(t.out, config.Annotated())
		return err
	case fs.Arg(0) == "check" && fs.NArg() == 2:
		if _, err := (&options{file: fs.Arg(1)}).load(t); err != nil {
			return err
		}
		fmt.Fprintf(t.out, "%s is right\n", fs.Arg(1))
		return nil
	}
	return usagef("gjallar config [check FILE] [-protocol NAME]")
}

// protocols names the built-in ones.
func protocols() string { return strings.Join(slices.Sorted(maps.Keys(builtin)), ", ") }

// checkConfig makes the checks that need to know Matrix and the protocols.
func checkConfig(c *config.Config) (m config.Mistakes) {
	if _, err := matrix.ParseServerName(c.ServerName); err != nil {
		m = append(m, c.Mistake("server_name", "%q is not a server name", c.ServerName))
	}
	for _, name := range slices.Sorted(maps.Keys(c.Networks)) {
		n := c.Networks[name]
		if name == listenerNetwork {
			m = append(m, c.Mistake("networks."+name, "the name belongs to the IRC listener"))
		}
		if n.Plugin != "" {
			if _, err := exec.LookPath(n.Plugin); err != nil {
				m = append(m, c.Mistake("networks."+name+".plugin", "no program to start: %v", err))
			}
			continue // its keys are checked when it is started
		}
		b, ok := builtin[n.Protocol]
		if !ok {
			m = append(m, c.Mistake("networks."+name+".protocol", "no built-in protocol %q; there are %s", n.Protocol, protocols()))
			continue
		}
		m = append(m, checkOptions(c, name, b(), n.Options)...)
	}
	return m
}
