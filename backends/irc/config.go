package irc

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"time"
)

// config of a network. Zero fields have the defaults of the schema.
type config struct {
	Server   string            `json:"server"`
	TLS      *bool             `json:"tls"`
	CAFile   string            `json:"ca_file"`
	CertFile string            `json:"cert_file"`
	KeyFile  string            `json:"key_file"`
	Password string            `json:"password"`
	Nick     string            `json:"nick"`
	Username string            `json:"username"`
	Realname string            `json:"realname"`
	SASL     *saslConfig       `json:"sasl"`
	Accounts accountsConfig    `json:"accounts"`
	Flood    floodConfig       `json:"flood"`
	Keys     map[string]string `json:"channel_keys"`
	MaxLines int               `json:"max_lines"`

	tls *tls.Config // nil without TLS
}

type saslConfig struct {
	Mechanism string `json:"mechanism"`
	Username  string `json:"username"`
	Password  string `json:"password"`
}

type accountsConfig struct {
	Max         *int     `json:"max"`
	Nick        string   `json:"nick"`
	Realname    string   `json:"realname"`
	IdleTimeout duration `json:"idle_timeout"`
}

type floodConfig struct {
	Burst    int     `json:"burst"`
	Lines    float64 `json:"lines_per_second"`
	Connects float64 `json:"connects_per_second"`
}

// duration is written as "36h" in JSON.
type duration time.Duration

func (d *duration) UnmarshalJSON(b []byte) error {
	var s string
	if err := json.Unmarshal(b, &s); err != nil {
		return err
	}
	v, err := time.ParseDuration(s)
	*d = duration(v)
	return err
}

const schema = `{
  "$schema": "https://json-schema.org/draft/2020-12/schema",
  "type": "object",
  "required": ["server"],
  "additionalProperties": false,
  "properties": {
    "server": {"type": "string", "pattern": "^.+:[0-9]+$", "description": "host:port of the IRC server; TLS is usually on port 6697"},
    "tls": {"type": "boolean", "default": true, "description": "encrypt the connection; the certificate is always checked"},
    "ca_file": {"type": "string", "description": "PEM file of the authorities to trust in place of the system's"},
    "cert_file": {"type": "string", "description": "PEM file of the bot's certificate, for SASL EXTERNAL"},
    "key_file": {"type": "string", "description": "PEM file of its key"},
    "password": {"type": "string", "x-secret": true, "description": "server password (PASS)"},
    "nick": {"type": "string", "default": "gjallar", "description": "nick of the bot"},
    "username": {"type": "string", "description": "user name (ident) of the bot; the nick if not given"},
    "realname": {"type": "string", "default": "Gjallar bridge"},
    "sasl": {
      "type": "object",
      "additionalProperties": false,
      "description": "login of the bot",
      "properties": {
        "mechanism": {"enum": ["PLAIN", "EXTERNAL"], "default": "PLAIN"},
        "username": {"type": "string"},
        "password": {"type": "string", "x-secret": true}
      }
    },
    "accounts": {
      "type": "object",
      "additionalProperties": false,
      "properties": {
        "max": {"type": "integer", "minimum": 0, "default": 100, "description": "connections of users besides the bot's; others are relayed by the bot"},
        "nick": {"type": "string", "default": "{name}", "description": "template of their nicks: {name} is the display name, {username} and {domain} the address"},
        "realname": {"type": "string", "default": "{name}", "description": "template of their real names"},
        "idle_timeout": {"type": "string", "default": "48h", "description": "disconnect who has not spoken for so long; 0s is never"}
      }
    },
    "flood": {
      "type": "object",
      "additionalProperties": false,
      "description": "what the network bears from one connection",
      "properties": {
        "burst": {"type": "integer", "minimum": 1, "default": 8, "description": "lines at once"},
        "lines_per_second": {"type": "number", "exclusiveMinimum": 0, "default": 1},
        "connects_per_second": {"type": "number", "exclusiveMinimum": 0, "default": 1, "description": "new connections of users"}
      }
    },
    "channel_keys": {"type": "object", "additionalProperties": {"type": "string"}, "x-secret": true, "description": "keys of channels, by name"},
    "max_lines": {"type": "integer", "minimum": 1, "default": 50, "description": "longer messages are refused"}
  }
}`

// parseConfig reads a configuration and the files it names, and sets defaults.
func parseConfig(raw json.RawMessage) (*config, error) {
	cfg := &config{}
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.DisallowUnknownFields()
	if err := dec.Decode(cfg); err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	cfg.setDefaults()
	if err := cfg.check(); err != nil {
		return nil, fmt.Errorf("configuration: %w", err)
	}
	if *cfg.TLS {
		var err error
		if cfg.tls, err = cfg.loadTLS(); err != nil {
			return nil, fmt.Errorf("configuration: %w", err)
		}
	}
	return cfg, nil
}

func setDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

func (c *config) setDefaults() {
	yes, hundred := true, 100
	setDefault(&c.TLS, &yes)
	setDefault(&c.Nick, "gjallar")
	setDefault(&c.Username, sanitiseUser(c.Nick))
	setDefault(&c.Realname, "Gjallar bridge")
	setDefault(&c.Accounts.Max, &hundred)
	setDefault(&c.Accounts.Nick, "{name}")
	setDefault(&c.Accounts.Realname, "{name}")
	setDefault(&c.Accounts.IdleTimeout, duration(48*time.Hour))
	setDefault(&c.Flood.Burst, 8)
	setDefault(&c.Flood.Lines, 1)
	setDefault(&c.Flood.Connects, 1)
	setDefault(&c.MaxLines, 50)
	if c.SASL != nil {
		setDefault(&c.SASL.Mechanism, "PLAIN")
	}
}

// check finds what would be refused, or injected, later.
func (c *config) check() error {
	if _, _, err := net.SplitHostPort(c.Server); err != nil {
		return fmt.Errorf("server: %w", err)
	}
	if sanitiseNick(c.Nick, maxNick) != c.Nick {
		return fmt.Errorf("nick: %q is not a nick", c.Nick)
	}
	for field, s := range map[string]string{"password": c.Password, "username": c.Username, "realname": c.Realname} {
		if strings.ContainsAny(s, "\r\n\x00") {
			return fmt.Errorf("%s: it has a line end", field)
		}
	}
	for channel, key := range c.Keys {
		if strings.ContainsAny(channel+key, " ,\r\n\x00") {
			return fmt.Errorf("channel_keys: %q or its key has a space, comma or line end", channel)
		}
	}
	if c.SASL != nil && c.SASL.Mechanism == "EXTERNAL" && c.CertFile == "" {
		return errors.New("sasl: EXTERNAL needs cert_file")
	}
	if c.SASL != nil && c.SASL.Mechanism == "PLAIN" && (c.SASL.Username == "" || c.SASL.Password == "") {
		return errors.New("sasl: PLAIN needs username and password")
	}
	return nil
}

func (c *config) loadTLS() (*tls.Config, error) {
	host, _, _ := net.SplitHostPort(c.Server)
	t := &tls.Config{ServerName: host, MinVersion: tls.VersionTLS12}
	if c.CAFile != "" {
		pem, err := os.ReadFile(c.CAFile)
		if err != nil {
			return nil, fmt.Errorf("ca_file: %w", err)
		}
		t.RootCAs = x509.NewCertPool()
		if !t.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("ca_file: no certificate in %s", c.CAFile)
		}
	}
	if c.CertFile != "" {
		cert, err := tls.LoadX509KeyPair(c.CertFile, c.KeyFile)
		if err != nil {
			return nil, fmt.Errorf("cert_file: %w", err)
		}
		t.Certificates = []tls.Certificate{cert}
	}
	return t, nil
}

// dialTimeout bounds connecting, with TLS.
const dialTimeout = 30 * time.Second

// connect opens a connection to the server. Only the bot shows the certificate.
func (c *config) connect(ctx context.Context, dial dialFunc, bot bool) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	raw, err := dial(ctx, "tcp", c.Server)
	if err != nil || c.tls == nil {
		return raw, err
	}
	t := c.tls.Clone()
	if !bot {
		t.Certificates = nil
	}
	conn := tls.Client(raw, t)
	if err := conn.HandshakeContext(ctx); err != nil {
		raw.Close()
		return nil, fmt.Errorf("TLS (is the port one for TLS? otherwise tls: false): %w", err)
	}
	return conn, nil
}
