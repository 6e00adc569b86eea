package config

import (
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"
)

func TestTheAnnotatedDefaultsNameEveryKey(t *testing.T) {
	c := &Config{lines: map[string]int{}}
	if m := decode("default.yaml", []byte(Annotated()), c); len(m) > 0 {
		t.Fatal(m)
	}
	for _, key := range leaves() {
		if c.lines[key] == 0 {
			t.Errorf("default.yaml does not set %s", key)
		}
	}
	if c.ServerName != "localhost" || c.Listen != "127.0.0.1:8008" || c.IRCListen != "127.0.0.1:6667" || c.Media.LinkLifetime != 720*time.Hour {
		t.Errorf("defaults: %+v", c)
	}
}

func TestLaterSourcesWin(t *testing.T) {
	c, err := Parse("f.yaml", []byte("listen: 127.0.0.1:1\nserver_name: a\nlog: {level: warn}\n"),
		[]string{"GJALLAR_LISTEN=127.0.0.1:2", "GJALLAR_LOG_FORMAT=json", "GJALLAR_REQUIRE_PEERS=1", "HOME=/"},
		Override{"listen", "127.0.0.1:3", "-listen"})
	if err != nil {
		t.Fatal(err)
	}
	got := []string{c.Listen, c.ServerName, c.Log.Level, c.Log.Format, c.Data}
	if want := []string{"127.0.0.1:3", "a", "warn", "json", "./gjallar-data"}; !reflect.DeepEqual(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestANetworksOwnKeysGoToItsProtocol(t *testing.T) {
	c, err := Parse("f.yaml", []byte("networks:\n  libera:\n    protocol: irc\n    address: a:1\n    tls: true\n"), nil)
	if err != nil {
		t.Fatal(err)
	}
	n := c.Networks["libera"]
	if n.Protocol != "irc" || string(n.Options) != `{"address":"a:1","tls":true}` {
		t.Errorf("%+v %s", n, n.Options)
	}
	if m := c.Mistake("networks.libera.tls", "x"); m.Line != 5 || m.File != "f.yaml" {
		t.Errorf("%v", m)
	}
}

func TestMistakes(t *testing.T) {
	tests := []struct{ name, text, want string }{
		{"an unknown key", "server_nam: a\n", `f.yaml:1: server_nam: unknown key; did you mean "server_name"?`},
		{"an unknown key in a section", "log:\n  colour: red\n", `f.yaml:2: log.colour: unknown key`},
		{"a double key", "listen: a:1\nlisten: a:2\n", "f.yaml:2: listen: is set twice (first on line 1)"},
		{"a text for a boolean", "rate_limits: maybe\n", `f.yaml:1: rate_limits: "maybe" is not true or false`},
		{"a boolean for a text", "server_name: true\n", `f.yaml:1: server_name: "true" is not a text`},
		{"a text for a number", "media:\n  max_upload: 5 MB\n", `f.yaml:2: media.max_upload: "5 MB" is not a whole number`},
		{"a bad duration", "media: {link_lifetime: long}\n", `f.yaml:1: media.link_lifetime: "long" is not a duration such as "90s" or "12h"`},
		{"a value for a section", "log: info\n", "f.yaml:1: log: must be a section with keys of its own"},
		{"a value for a list", "application_services: a.yaml\n", "f.yaml:1: application_services: must be a list"},
		{"an address without port", "listen: localhost\n", `f.yaml:1: listen: "localhost" is not host:port`},
		{"a choice that is none", "log: {level: loud}\n", `f.yaml:1: log.level: "loud" is none of debug, info, warn, error`},
		{"a bad network name", "networks:\n  Li-bera: {protocol: irc}\n", "f.yaml:2: networks.Li-bera: a network's name is lower-case letters and digits, a letter first, 32 at most"},
		{"a network without protocol", "networks:\n  a:\n    tls: true\n", "f.yaml:2: networks.a: has neither protocol nor plugin"},
		{"a protocol that is no text", "networks:\n  a:\n    protocol: [1]\n", "f.yaml:2: networks.a: protocol must be a string"},
		{"not YAML", "a: [\n", "f.yaml:1: did not find expected node content"},
		{"a database of another kind", "database: mysql://x\n", "f.yaml:1: database: must start with postgres:// or sqlite:"},
		{"token registration without a token", "registration:\n  mode: token\n", "f.yaml:1: registration.token: is empty, but registration.mode is token"},
		{"an alias", "a: &x 1\nlog: {level: *x}\n", "f.yaml:1: a: unknown key\nf.yaml:2: log.level: aliases are not supported"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := Parse("f.yaml", []byte(tt.text), nil)
			if err == nil || err.Error() != tt.want {
				t.Errorf("got  %v\nwant %s", err, tt.want)
			}
		})
	}
}

func TestMistakesOfFlagsAndVariablesNameThem(t *testing.T) {
	_, err := Parse("", nil, []string{"GJALLAR_RATE_LIMITS=perhaps"}, Override{"listen", "x", "-listen"})
	if err == nil || !strings.Contains(err.Error(), `environment variable GJALLAR_RATE_LIMITS: "perhaps" is not true or false`) ||
		!strings.Contains(err.Error(), `listen: "x" is not host:port`) {
		t.Error(err)
	}
}

func TestAMissingFileIsNotAMistakeInIt(t *testing.T) {
	_, err := Load("/nonexistent/gjallar.yaml", nil)
	if _, ok := errors.AsType[Mistakes](err); ok || err == nil {
		t.Error(err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(Annotated()))
	f.Add([]byte("networks: {a: {protocol: irc, x: [1, {y: 2}]}}"))
	f.Add([]byte("a: &a [*a]"))
	f.Fuzz(func(t *testing.T, text []byte) {
		c, err := Parse("f.yaml", text, nil)
		if m, ok := err.(Mistakes); c == nil || err != nil && (!ok || len(m) == 0) {
			t.Fatalf("%v, %v", c, err)
		}
	})
}
