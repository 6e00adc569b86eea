package host

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
	"time"
)

func TestRestarts(t *testing.T) {
	policy := Restarts{
		Min: time.Second, Max: 10 * time.Second, Crashes: 6, Window: time.Minute, Pause: time.Hour,
		Jitter: func() float64 { return 0 },
	}
	type crash struct {
		after, lived time.Duration
		want         time.Duration
	}
	tests := []struct {
		name    string
		crashes []crash
	}{
		{"the delay doubles up to its limit", []crash{{0, 0, time.Second}, {1, 0, 2 * time.Second}, {1, 0, 4 * time.Second}, {1, 0, 8 * time.Second}, {1, 0, 10 * time.Second}}},
		{"so many open the breaker", []crash{{0, 0, time.Second}, {1, 0, 2 * time.Second}, {1, 0, 4 * time.Second}, {1, 0, 8 * time.Second}, {1, 0, 10 * time.Second}, {1, 0, time.Hour}, {time.Hour, 0, time.Hour}, {time.Hour, time.Second, time.Hour}}},
		{"living for the window closes it", []crash{{0, 0, time.Second}, {1, 0, 2 * time.Second}, {1, 0, 4 * time.Second}, {1, 0, 8 * time.Second}, {1, 0, 10 * time.Second}, {1, 0, time.Hour}, {2 * time.Hour, time.Minute, time.Second}}},
		{"crashes long ago do not count", []crash{{0, 0, time.Second}, {59 * time.Second, 0, 2 * time.Second}, {59 * time.Second, 0, 2 * time.Second}}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			c := crashes{policy: policy}
			now := time.Unix(1_000_000, 0)
			for i, crash := range test.crashes {
				now = now.Add(crash.after)
				if got := c.next(now, crash.lived); got != crash.want {
					t.Errorf("crash %d: delay %v, want %v", i+1, got, crash.want)
				}
			}
		})
	}
	policy.Jitter = func() float64 { return 1 }
	if got := (&crashes{policy: policy}).next(time.Now(), 0); got != 750*time.Millisecond {
		t.Errorf("with the greatest jitter: %v", got)
	}
}

func TestLines(t *testing.T) {
	tests := []struct{ name, in, want string }{
		{"slog", `{"time":"2026-01-01T00:00:00Z","level":"WARN","msg":"careful","n":1}` + "\n", "level=WARN msg=careful n=1\n"},
		{"hclog", `{"@level":"error","@message":"bad","@timestamp":"x","@module":"m","err":"no"}` + "\n", "level=ERROR msg=bad err=no\n"},
		{"trace", `{"@level":"trace","@message":"t"}` + "\n", "level=DEBUG msg=t\n"},
		{"fields of wrong types", `{"@message":1,"@level":[],"msg":{}}` + "\n", "level=INFO msg=\"\"\n"},
		{"no JSON", "panic: oh\n\n\tmain.go:1\n", "level=WARN msg=\"plugin wrote\" line=\"panic: oh\"\nlevel=WARN msg=\"plugin wrote\" line=main.go:1\n"},
		{"half JSON", "{\"msg\":\n", "level=WARN msg=\"plugin wrote\" line=\"{\\\"msg\\\":\"\n"},
		{"JSON that is no object", "[1]\n", "level=WARN msg=\"plugin wrote\" line=[1]\n"},
		{"invalid UTF-8", "\xff\n", "level=WARN msg=\"plugin wrote\" line=\"\uFFFD\"\n"},
		{"a line without end", "never", ""},
	}
	for _, test := range tests {
		for _, size := range []int{1, 7, 1000} { // written in pieces of
			var out bytes.Buffer
			l := &lines{log: slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{Level: slog.LevelDebug, ReplaceAttr: noTime}))}
			for in := test.in; in != ""; in = in[min(size, len(in)):] {
				piece := in[:min(size, len(in))]
				if n, err := l.Write([]byte(piece)); n != len(piece) || err != nil {
					t.Fatal(n, err)
				}
			}
			if out.String() != test.want {
				t.Errorf("%s, pieces of %d:\n%swant\n%s", test.name, size, out.String(), test.want)
			}
		}
	}
}

func noTime(_ []string, a slog.Attr) slog.Attr {
	if a.Key == slog.TimeKey {
		return slog.Attr{}
	}
	return a
}

func TestALongLineIsCut(t *testing.T) {
	var out bytes.Buffer
	l := &lines{log: slog.New(slog.NewTextHandler(&out, nil))}
	for range 100 {
		_, _ = l.Write([]byte(strings.Repeat("x", 10_000)))
	}
	_, _ = l.Write([]byte("\nnext\n"))
	if out.Len() > maxLine+1000 || !strings.Contains(out.String(), "line=next") {
		t.Errorf("%d bytes of log", out.Len())
	}
	if cap(l.buf) > 2*maxLine {
		t.Errorf("%d bytes held", cap(l.buf))
	}
}

func FuzzLines(f *testing.F) {
	f.Add([]byte(`{"@message": 1, "level": "x"}` + "\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		l := &lines{log: slog.New(slog.DiscardHandler)}
		_, _ = l.Write(b)
	})
}
