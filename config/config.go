// Package config reads the configuration file, the environment and flags into one
// struct, and names file, line and key of every mistake.
//
// The defaults and their documentation are one file, default.yaml.
package config

import (
	_ "embed"
	"encoding/json"
	"fmt"
	"net"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

//go:embed default.yaml
var defaults string

// Annotated returns the defaults as a documented file.
func Annotated() string { return defaults }

// Config is the whole configuration. The keys are documented in default.yaml.
type Config struct {
	ServerName          string              `yaml:"server_name"`
	Data                string              `yaml:"data"`
	Listen              string              `yaml:"listen"`
	PublicURL           string              `yaml:"public_url"`
	Database            string              `yaml:"database"`
	IRCListen           string              `yaml:"irc_listen"`
	IRCListener         IRCListener         `yaml:"irc_listener"`
	Log                 Log                 `yaml:"log"`
	Registration        Registration        `yaml:"registration"`
	Media               Media               `yaml:"media"`
	RateLimits          bool                `yaml:"rate_limits"`
	ApplicationServices []string            `yaml:"application_services"`
	Bridge              Bridge              `yaml:"bridge"`
	Networks            map[string]*Network `yaml:"networks"`

	file    string
	lines   map[string]int    // of the keys that a file set, by dotted path
	sources map[string]string // of the keys that a flag or variable set
}

// IRCListener is the section irc_listener.
type IRCListener struct {
	Guests      string `yaml:"guests"`
	CreateRooms bool   `yaml:"create_rooms"`
	MOTD        string `yaml:"motd"`
}

// Log is the section log.
type Log struct {
	Level  string `yaml:"level"`
	Format string `yaml:"format"`
}

// Registration is the section registration.
type Registration struct {
	Mode         string `yaml:"mode"`
	Token        string `yaml:"token"`
	SharedSecret string `yaml:"shared_secret"`
}

// Media is the section media.
type Media struct {
	MaxUpload    int64         `yaml:"max_upload"` // bytes
	AllowPrivate bool          `yaml:"allow_private"`
	LinkLifetime time.Duration `yaml:"link_lifetime"`
}

// Bridge is the section bridge.
type Bridge struct {
	Homeserver   string `yaml:"homeserver"`
	Listen       string `yaml:"listen"`
	Registration string `yaml:"registration"`
}

// Network is one entry of networks.
type Network struct {
	Protocol string
	Plugin   string          // path of a program; "" is a built-in protocol
	Checksum string          // its SHA-256 in hex; "" is not checked
	Options  json.RawMessage // the protocol's own keys, as a JSON object
}

// Mistake is something wrong with the configuration.
type Mistake struct {
	File string // "" for a flag or an environment variable
	Line int    // 0 if unknown
	Key  string // dotted path
	Text string
}

func (m *Mistake) Error() string {
	var b strings.Builder
	if m.File != "" {
		fmt.Fprintf(&b, "%s:", m.File)
		if m.Line > 0 {
			fmt.Fprintf(&b, "%d:", m.Line)
		}
		b.WriteByte(' ')
	}
	if m.Key != "" {
		fmt.Fprintf(&b, "%s: ", m.Key)
	}
	return b.String() + m.Text
}

// Mistakes is the error of Load and Check: all that is wrong, in the order of the file.
type Mistakes []*Mistake

func (m Mistakes) Error() string {
	lines := make([]string, len(m))
	for i, e := range m {
		lines[i] = e.Error()
	}
	return strings.Join(lines, "\n")
}

// Sort puts them in the order of the file.
func (m Mistakes) Sort() {
	slices.SortStableFunc(m, func(a, b *Mistake) int { return a.Line - b.Line })
}

// Override sets one key, by its dotted path; it is how flags come in.
type Override struct{ Key, Value, Source string }

// Load reads the defaults, the file (none if empty), the GJALLAR_ variables of
// environ, and the overrides, the later ones winning. The error is that the file
// cannot be read, or [Mistakes]; with these it returns the rest of the configuration
// too, so that others may find further ones.
func Load(file string, environ []string, overrides ...Override) (*Config, error) {
	var text []byte
	if file != "" {
		var err error
		if text, err = os.ReadFile(file); err != nil {
			return nil, fmt.Errorf("read configuration: %w", err)
		}
	}
	return Parse(file, text, environ, overrides...)
}

// Parse is Load with the text of the file.
func Parse(file string, text []byte, environ []string, overrides ...Override) (*Config, error) {
	c := &Config{lines: map[string]int{}}
	if m := decode("default.yaml", []byte(defaults), c); len(m) > 0 {
		return nil, m
	}
	c.file, c.lines, c.sources = file, map[string]int{}, map[string]string{}
	mistakes := decode(file, text, c)
	mistakes = append(mistakes, c.override(append(fromEnviron(environ), overrides...))...)
	mistakes = append(mistakes, c.check()...)
	if len(mistakes) > 0 {
		mistakes.Sort()
		return c, mistakes
	}
	return c, nil
}

// File is the name of the loaded file, "" if there is none.
func (c *Config) File() string { return c.file }

// Overridden reports whether a flag or an environment variable has set the key.
func (c *Config) Overridden(key string) bool { return c.sources[key] != "" }

// Mistake makes one about a key of the loaded file, for checks that others make.
func (c *Config) Mistake(key, format string, args ...any) *Mistake {
	m := &Mistake{Key: key, Text: fmt.Sprintf(format, args...)}
	if s, ok := c.sources[key]; ok {
		m.Text += " (" + s + ")"
		return m
	}
	for k := key; ; {
		if line, ok := c.lines[k]; ok {
			m.File, m.Line = c.file, line
			return m
		}
		i := strings.LastIndexByte(k, '.')
		if i < 0 {
			return m
		}
		k = k[:i]
	}
}

// fromEnviron keeps the variables that start with GJALLAR_ and name a key. The
// project's own test switches share the prefix and are left alone.
func fromEnviron(environ []string) []Override {
	keys := map[string]string{}
	for _, key := range leaves() {
		keys["GJALLAR_"+strings.ToUpper(strings.ReplaceAll(key, ".", "_"))] = key
	}
	var out []Override
	for _, kv := range environ {
		name, value, _ := strings.Cut(kv, "=")
		if key, ok := keys[name]; ok {
			out = append(out, Override{key, value, "environment variable " + name})
		}
	}
	return out
}

var networkName = regexp.MustCompile(`^[a-z][a-z0-9]{0,31}$`)

// check finds what is well-formed but makes no sense.
func (c *Config) check() (m Mistakes) {
	bad := func(key, format string, args ...any) { m = append(m, c.Mistake(key, format, args...)) }
	for key, addr := range map[string]string{"listen": c.Listen, "bridge.listen": c.Bridge.Listen} {
		if _, _, err := net.SplitHostPort(addr); err != nil {
			bad(key, "%q is not host:port", addr)
		}
	}
	if c.IRCListen != "off" {
		if _, _, err := net.SplitHostPort(c.IRCListen); err != nil {
			bad("irc_listen", `%q is not host:port, nor "off"`, c.IRCListen)
		}
	}
	oneOf := func(key, value string, allowed ...string) {
		if !slices.Contains(allowed, value) {
			bad(key, "%q is none of %s", value, strings.Join(allowed, ", "))
		}
	}
	oneOf("irc_listener.guests", c.IRCListener.Guests, "yes", "no", "loopback")
	oneOf("log.level", c.Log.Level, "debug", "info", "warn", "error")
	oneOf("log.format", c.Log.Format, "text", "json")
	oneOf("registration.mode", c.Registration.Mode, "open", "token", "closed", "loopback")
	if c.Registration.Mode == "token" && c.Registration.Token == "" {
		bad("registration.token", "is empty, but registration.mode is token")
	}
	for key, s := range map[string]string{"public_url": c.PublicURL, "bridge.homeserver": c.Bridge.Homeserver} {
		if u, err := url.Parse(s); s != "" && (err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https") {
			bad(key, "%q is not an http:// or https:// address", s)
		}
	}
	if d := c.Database; d != "" && !strings.HasPrefix(d, "postgres://") && !strings.HasPrefix(d, "postgresql://") && !strings.HasPrefix(d, "sqlite:") {
		bad("database", "must start with postgres:// or sqlite:")
	}
	if c.ServerName == "" {
		bad("server_name", "is empty")
	}
	if c.Data == "" {
		bad("data", "is empty")
	}
	if c.Media.MaxUpload <= 0 {
		bad("media.max_upload", "must be above 0")
	}
	if c.Media.LinkLifetime <= 0 {
		bad("media.link_lifetime", "must be above 0")
	}
	for name, n := range c.Networks {
		if !networkName.MatchString(name) {
			bad("networks."+name, "a network's name is lower-case letters and digits, a letter first, 32 at most")
		}
		if n.Protocol == "" && n.Plugin == "" {
			bad("networks."+name, "has neither protocol nor plugin")
		}
	}
	return m
}

// UnmarshalYAML takes the keys that are ours and leaves the rest to the protocol.
func (n *Network) UnmarshalYAML(node *yaml.Node) error {
	var all map[string]any
	if err := node.Decode(&all); err != nil {
		return err
	}
	for key, to := range map[string]*string{"protocol": &n.Protocol, "plugin": &n.Plugin, "checksum": &n.Checksum} {
		v, ok := all[key]
		if !ok {
			continue
		}
		s, ok := v.(string)
		if !ok {
			return fmt.Errorf("%s must be a string", key)
		}
		*to = s
		delete(all, key)
	}
	if all == nil {
		all = map[string]any{}
	}
	var err error
	n.Options, err = json.Marshal(all)
	return err
}
