package ircd

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gjallar-im/gjallar/backends"
)

// certificate writes a self-signed certificate for 127.0.0.1 and returns the
// files and what trusts it.
func certificate(t *testing.T) (cert, key string, roots *x509.CertPool) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &private.PublicKey, private)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	cert, key = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	writeFile(t, cert, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})))
	writeFile(t, key, string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8})))
	parsed, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	roots = x509.NewCertPool()
	roots.AddCert(parsed)
	return cert, key, roots
}

func TestTLS(t *testing.T) {
	cert, key, roots := certificate(t)
	l := start(t, `"tls_cert": "`+cert+`", "tls_key": "`+key+`"`)
	conn, err := tls.Dial("tcp", l.addr, &tls.Config{RootCAs: roots})
	if err != nil {
		t.Fatal(err)
	}
	bob := newClient(t, conn).register("bob", "")
	bob.write("JOIN #tea")
	bob.sync()
	l.show("#tea", alice, said("over TLS"))
	bob.got(":alice!alice@localhost PRIVMSG #tea :over TLS")
	bob.do("WHOIS bob", "* 311 *", "* 319 *", "* 312 *", ":localhost 671 bob bob :is using a secure connection", "* 317 *", "* 318 *")
	bob.write("QUIT")
	if rest := bob.rest(); len(rest) != 1 || !strings.HasPrefix(rest[0], "ERROR ") {
		t.Errorf("after QUIT: %q", rest)
	}
	// Someone who does not speak TLS is no trouble to others.
	raw := l.connect()
	raw.write("NICK x", "USER x 0 * :x")
	raw.rest()
}

func TestAnEndlessHandshakeEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, _ := piped(t)
		ours, theirs := net.Pipe()
		n.serve(tls.Server(ours, &tls.Config{}))
		begin := time.Now()
		newClient(t, theirs).patient()
		if d := time.Since(begin); d > 2*registerTimeout {
			t.Errorf("it took %v", d)
		}
		if err := n.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
	})
}

// Lines beyond the rate wait; none is lost.
func TestLineRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, host := piped(t)
		n.cfg.Limits.LineRate = 10
		ours, theirs := net.Pipe()
		n.serve(ours)
		c := newClient(t, theirs)
		go func() {
			c.write("NICK bob", "USER bob 0 * :x", "JOIN #tea")
			for range 100 {
				c.write("PRIVMSG #tea :x")
			}
			c.write("QUIT")
		}()
		begin := time.Now()
		c.patient()
		if d := time.Since(begin); d < 6*time.Second || d > 8*time.Second {
			t.Errorf("104 lines took %v", d)
		}
		messages := 0
		for _, ev := range host.Events() {
			if _, ok := ev.Body.(*backends.Message); ok {
				messages++
			}
		}
		if messages != 100 {
			t.Errorf("%d messages of 100 arrived", messages)
		}
		if err := n.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
	})
}

// A client that hangs up at once has still said what it said.
func TestWhatWasSaidBeforeHangingUpArrives(t *testing.T) {
	l := start(t, "")
	bob := l.guest("bob", "echo-message")
	bob.write("JOIN #tea")
	bob.sync()
	var lines []string
	for range 500 {
		lines = append(lines, "PRIVMSG #tea :x")
	}
	bob.write(lines...)
	bob.conn.(*net.TCPConn).CloseWrite()
	waitFor(t, func() bool {
		n := 0
		for _, ev := range l.host.Events() {
			if _, ok := ev.Body.(*backends.Message); ok {
				n++
			}
		}
		return n == 500
	})
}
