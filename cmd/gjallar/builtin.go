package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"github.com/santhosh-tekuri/jsonschema/v6/kind"
	"golang.org/x/text/language"
	"golang.org/x/text/message"

	"github.com/gjallar-im/gjallar/backends"
	"github.com/gjallar-im/gjallar/backends/irc"
	"github.com/gjallar-im/gjallar/backends/ircd"
	"github.com/gjallar-im/gjallar/backends/xmpp"
	"github.com/gjallar-im/gjallar/config"
	"github.com/gjallar-im/gjallar/plugins"
)

// builtin are the protocols whose backends are part of this program. They too run
// in processes of their own.
var builtin = map[string]func() backends.Backend{
	"irc":  irc.New,
	"ircd": ircd.New,
	"xmpp": xmpp.New,
}

// servePlugin is the program as the process of a built-in backend.
func servePlugin(protocol string) int {
	b, ok := builtin[protocol]
	if !ok {
		fmt.Fprintf(os.Stderr, "gjallar: no built-in protocol %q\n", protocol)
		return 1
	}
	plugins.Main(b())
	return 0
}

// printer words the mistakes that a schema finds.
var printer = message.NewPrinter(language.English)

// checkOptions holds a network's own keys against the schema of its protocol.
func checkOptions(c *config.Config, name string, b backends.Backend, options []byte) config.Mistakes {
	key := "networks." + name
	schema, err := compile(b.Describe().Schema)
	if err != nil {
		return config.Mistakes{c.Mistake(key, "the protocol's schema is broken: %v", err)}
	}
	value, err := jsonschema.UnmarshalJSON(bytes.NewReader(options))
	if err != nil {
		return config.Mistakes{c.Mistake(key, "%v", err)}
	}
	bad, ok := errors.AsType[*jsonschema.ValidationError](schema.Validate(value))
	if !ok {
		return nil
	}
	var m config.Mistakes
	for _, leaf := range leaves(bad) {
		k := key
		if len(leaf.InstanceLocation) > 0 {
			k += "." + strings.Join(leaf.InstanceLocation, ".")
		}
		switch e := leaf.ErrorKind.(type) {
		case *kind.AdditionalProperties:
			for _, name := range e.Properties {
				m = append(m, c.Mistake(k+"."+name, "unknown key"))
			}
		case *kind.Pattern:
			m = append(m, c.Mistake(k, "%q does not have the form %s", e.Got, describe(e.Want)))
		default:
			m = append(m, c.Mistake(k, "%s", e.LocalizedString(printer)))
		}
	}
	return m
}

// describe words a pattern.
func describe(pattern string) string {
	if pattern == "^.+:[0-9]+$" {
		return "host:port"
	}
	return pattern
}

func compile(schema []byte) (*jsonschema.Schema, error) {
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(schema))
	if err != nil {
		return nil, err
	}
	c := jsonschema.NewCompiler()
	if err := c.AddResource("options.json", doc); err != nil {
		return nil, err
	}
	return c.Compile("options.json")
}

// leaves are the mistakes themselves, without what they are parts of.
func leaves(e *jsonschema.ValidationError) []*jsonschema.ValidationError {
	if len(e.Causes) == 0 {
		return []*jsonschema.ValidationError{e}
	}
	var out []*jsonschema.ValidationError
	for _, c := range e.Causes {
		out = append(out, leaves(c)...)
	}
	return out
}
