package irc

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/gjallar-im/gjallar/backends"
	"github.com/gjallar-im/gjallar/backends/backendtest"
)

func TestConfig(t *testing.T) {
	tests := []struct {
		name, config, err string
	}{
		{"the least", `{"server":"irc.test:6697"}`, ""},
		{"no port", `{"server":"irc.test"}`, "server"},
		{"an unknown field", `{"server":"irc.test:6697","insecure":true}`, "insecure"},
		{"a nick with a space", `{"server":"irc.test:6697","nick":"a b"}`, "nick"},
		{"a line end in the password", `{"server":"irc.test:6697","password":"a\nQUIT"}`, "password"},
		{"a line end in a key", `{"server":"irc.test:6697","channel_keys":{"#a":"b\r"}}`, "channel_keys"},
		{"PLAIN without a password", `{"server":"irc.test:6697","sasl":{"username":"a"}}`, "PLAIN"},
		{"EXTERNAL without a certificate", `{"server":"irc.test:6697","sasl":{"mechanism":"EXTERNAL"}}`, "EXTERNAL"},
		{"a missing file", `{"server":"irc.test:6697","ca_file":"/nonexistent"}`, "ca_file"},
		{"a bad duration", `{"server":"irc.test:6697","accounts":{"idle_timeout":"soon"}}`, "duration"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			cfg, err := parseConfig(json.RawMessage(tt.config))
			if tt.err == "" {
				if err != nil || cfg.tls == nil || cfg.tls.InsecureSkipVerify || *cfg.Accounts.Max != 100 {
					t.Errorf("%+v, %v", cfg, err)
				}
			} else if err == nil || !strings.Contains(err.Error(), tt.err) {
				t.Errorf("err = %v, want one about %s", err, tt.err)
			}
		})
	}
}

func TestTheSchemaIsOne(t *testing.T) {
	doc, err := jsonschema.UnmarshalJSON(strings.NewReader(string(New().Describe().Schema)))
	if err != nil {
		t.Fatal(err)
	}
	c := jsonschema.NewCompiler()
	if err := c.AddResource("irc.json", doc); err != nil {
		t.Fatal(err)
	}
	s, err := c.Compile("irc.json")
	if err != nil {
		t.Fatal(err)
	}
	for config, good := range map[string]bool{
		`{"server":"irc.test:6697","accounts":{"max":0},"sasl":{"mechanism":"EXTERNAL"}}`: true,
		`{"server":"irc.test"}`: false,
		`{}`:                    false,
	} {
		v, err := jsonschema.UnmarshalJSON(strings.NewReader(config))
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Validate(v); (err == nil) != good {
			t.Errorf("%s: %v", config, err)
		}
	}
}

func TestNicks(t *testing.T) {
	tests := []struct {
		name, template string
		user           backends.User
		want           string
	}{
		{"the name", "{name}", backends.User{Name: "Alice", Username: "a"}, "Alice"},
		{"marks fall off", "{name}", backends.User{Name: "Zoë Ångström"}, "Zoe_Angstrom"},
		{"what cannot be written is dropped", "{name}[m]", backends.User{Name: "al!ce@x:#y 🎉"}, "alcexy_[m]"},
		{"nothing can be written", "{name}[m]", backends.User{Name: "Алиса", Username: "alisa"}, "alisa[m]"},
		{"nothing at all", "{name}", backends.User{Name: "阿", Username: "李"}, "user"},
		{"no digit at the start", "{name}", backends.User{Name: "007"}, "_007"},
		{"no hyphen at the start", "{name}", backends.User{Name: "-x"}, "_-x"},
		{"cut", "{name}", backends.User{Name: "abcdefghijklmnopqrstuvwxyz"}, "abcdefghijkl"},
		{"the address", "{username}|{domain}", backends.User{Name: "x", Username: "a", Domain: "b.c"}, "a|bc"},
		{"no line can be injected", "{name}", backends.User{Name: "a\r\nQUIT"}, "a__QUIT"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := nickFor(tt.template, tt.user, 12); got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
	for clashes, want := range []string{"alice", "alice_", "alice1", "alice2"} {
		if got := nickTry("alice", clashes, 9); got != want {
			t.Errorf("after %d clashes %q, want %q", clashes, got, want)
		}
	}
	if got := nickTry("abcdefghi", 12, 9); got != "abcdefg11" {
		t.Errorf("cut for the suffix: %q", got)
	}
}

func FuzzNick(f *testing.F) {
	f.Add("Zoë 🎉\r\n", "x")
	f.Fuzz(func(t *testing.T, name, username string) {
		nick := nickFor("{name}", backends.User{Name: name, Username: username}, 16)
		if nick == "" || len(nick) > 16 || !validTarget(nick) || strings.IndexByte("0123456789-", nick[0]) >= 0 {
			t.Errorf("nick %q", nick)
		}
		if user := sanitiseUser(username); user == "" || !validTarget(user) {
			t.Errorf("user %q", user)
		}
	})
}

// certificate makes a self-signed certificate, as files and as one to serve.
func certificate(t *testing.T) (certFile, keyFile string, cert tls.Certificate) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	certPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	keyPEM := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})
	certFile, keyFile = filepath.Join(t.TempDir(), "cert.pem"), filepath.Join(t.TempDir(), "key.pem")
	for path, b := range map[string][]byte{certFile: certPEM, keyFile: keyPEM} {
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cert, err = tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		t.Fatal(err)
	}
	return certFile, keyFile, cert
}

func TestTLSAndTheCertificateAsLogin(t *testing.T) {
	certFile, keyFile, cert := certificate(t)
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{cert}, ClientAuth: tls.RequestClientCert})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	open := func(extra string) (*backendtest.Host, backends.Network) {
		host := backendtest.NewHost(t)
		n, err := New().Open(t.Context(), json.RawMessage(fmt.Sprintf(`{"server":%q%s}`, l.Addr(), extra)), host)
		if err != nil {
			t.Fatal(err)
		}
		return host, n
	}
	go func() { // a server that refuses nobody's handshake but waits for its end
		for {
			raw, err := l.Accept()
			if err != nil {
				return
			}
			go serveExternal(raw.(*tls.Conn))
		}
	}()

	host, n := open("")
	if state := host.WaitPhase(backends.Disconnected); !strings.Contains(state.Reason, "certificate") {
		t.Errorf("an unknown authority: %q", state.Reason)
	}
	n.Close(t.Context())

	host, n = open(fmt.Sprintf(`,"ca_file":%q,"cert_file":%q,"key_file":%q,"sasl":{"mechanism":"EXTERNAL"}`, certFile, certFile, keyFile))
	host.WaitPhase(backends.Ready)
	n.Close(t.Context())
}

// serveExternal welcomes a client that logs in by a certificate.
func serveExternal(conn *tls.Conn) {
	defer conn.Close()
	if conn.Handshake() != nil || len(conn.ConnectionState().PeerCertificates) != 1 {
		return
	}
	s := &stranger{conn: conn, lines: newScanner(conn)}
	for _, step := range [][2]string{
		{"USER", ":s CAP * LS :sasl=EXTERNAL"},
		{"CAP REQ sasl", ":s CAP * ACK :sasl"},
		{"AUTHENTICATE EXTERNAL", "AUTHENTICATE +"},
		{"AUTHENTICATE +", ":s 903 * :welcome"},
		{"CAP END", ":s 001 gjallar :hi\r\n:s 376 gjallar :end"},
	} {
		for s.lines.Scan() && !strings.HasPrefix(s.lines.Text(), step[0]) {
		}
		s.send(step[1])
	}
	for s.lines.Scan() {
	}
}
