package host

import (
	"bytes"
	"context"
	"encoding/json"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"unicode/utf8"
)

const (
	maxLine       = 32 << 10 // bytes of a line of standard error; the rest is cut off
	maxAttributes = 32
)

// lines turns a plugin's standard error into records of a log. A line may be JSON
// as slog writes it, or hclog; any other is logged as it is, at Warn: that is what
// a panic looks like. Only one goroutine writes.
type lines struct {
	log *slog.Logger
	buf []byte
}

func (l *lines) Write(p []byte) (int, error) {
	n := len(p)
	for {
		line, rest, ok := bytes.Cut(p, []byte("\n"))
		if room := maxLine - len(l.buf); room > 0 {
			l.buf = append(l.buf, line[:min(len(line), room)]...)
		}
		if !ok {
			return n, nil
		}
		l.line(l.buf)
		l.buf, p = l.buf[:0], rest
	}
}

func (l *lines) line(line []byte) {
	line = bytes.TrimSpace(line)
	if len(line) == 0 {
		return
	}
	var fields map[string]any
	if line[0] != '{' || json.Unmarshal(line, &fields) != nil {
		l.log.Warn("plugin wrote", "line", strings.ToValidUTF8(string(line), string(utf8.RuneError)))
		return
	}
	msg := pop(fields, "msg", "@message")
	level := parseLevel(pop(fields, "level", "@level"))
	pop(fields, "time", "@timestamp")
	pop(fields, "@module", "@caller")
	var attrs []slog.Attr
	for _, name := range slices.Sorted(maps.Keys(fields)) {
		if len(attrs) < maxAttributes {
			attrs = append(attrs, slog.Any(name, fields[name]))
		}
	}
	l.log.LogAttrs(context.Background(), level, msg, attrs...)
}

// pop removes the names from fields and returns the first that was a string.
func pop(fields map[string]any, names ...string) string {
	found := ""
	for _, name := range names {
		if s, ok := fields[name].(string); ok && found == "" {
			found = s
		}
		delete(fields, name)
	}
	return found
}

func parseLevel(s string) slog.Level {
	var level slog.Level
	if strings.EqualFold(s, "trace") {
		return slog.LevelDebug
	}
	if level.UnmarshalText([]byte(s)) != nil {
		return slog.LevelInfo
	}
	return level
}

// leastLevel is the least level that log keeps.
func leastLevel(log *slog.Logger) slog.Level {
	for _, level := range []slog.Level{slog.LevelDebug, slog.LevelInfo, slog.LevelWarn} {
		if log.Enabled(context.Background(), level) {
			return level
		}
	}
	return slog.LevelError
}
