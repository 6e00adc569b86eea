package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"

	"github.com/gjallar-im/gjallar/config"
)

// options are the flags that commands which read the configuration share.
type options struct {
	file string
	set  []config.Override
}

// newFlags makes the flag set of a command. Flags other than -config are keys of
// the configuration.
func newFlags(command string, w io.Writer) (*flag.FlagSet, *options) {
	o := &options{}
	fs := flag.NewFlagSet(command, flag.ContinueOnError)
	fs.SetOutput(w)
	fs.Usage = func() {
		fmt.Fprintf(w, "Usage of gjallar %s:\n", command)
		fs.PrintDefaults()
	}
	fs.StringVar(&o.file, "config", "", "read the configuration from `FILE` (YAML; gjallar config prints the defaults)")
	for _, f := range []struct{ name, key, help string }{
		{"data", "data", "keep keys, media and the database in `DIR` (default ./gjallar-data)"},
		{"listen", "listen", "`ADDR` where Matrix clients connect (default 127.0.0.1:8008)"},
		{"irc-listen", "irc_listen", "`ADDR` where IRC clients connect, or off (default 127.0.0.1:6667)"},
		{"server-name", "server_name", "`NAME` in user IDs and room aliases (default localhost)"},
		{"log-level", "log.level", "`LEVEL`: debug, info, warn or error (default info)"},
	} {
		fs.Func(f.name, f.help, func(v string) error {
			o.set = append(o.set, config.Override{Key: f.key, Value: v, Source: "flag -" + f.name})
			return nil
		})
	}
	return fs, o
}

// errTold is the error of flags: the flag package has printed what is wrong.
var errTold = errors.New("wrong flags")

// parse is fs.Parse; the error is [flag.ErrHelp] or errTold.
func parse(fs *flag.FlagSet, args []string) error {
	err := fs.Parse(args)
	if err == nil || errors.Is(err, flag.ErrHelp) {
		return err
	}
	return errTold
}

// load reads the configuration that the flags, the environment and the file give,
// and names all that is wrong with it.
func (o *options) load(t *terminal) (*config.Config, error) {
	c, err := config.Load(o.file, t.environ, o.set...)
	if c == nil {
		return nil, err
	}
	mistakes, _ := errors.AsType[config.Mistakes](err)
	mistakes = append(mistakes, checkConfig(c)...)
	if len(mistakes) > 0 {
		mistakes.Sort()
		return nil, mistakes
	}
	return c, nil
}

// newLogger makes the logger that the configuration asks for.
func newLogger(w io.Writer, c *config.Config) *slog.Logger {
	var level slog.Level
	if err := level.UnmarshalText([]byte(c.Log.Level)); err != nil {
		level = slog.LevelInfo
	}
	opts := &slog.HandlerOptions{Level: level}
	if c.Log.Format == "json" {
		return slog.New(slog.NewJSONHandler(w, opts))
	}
	return slog.New(slog.NewTextHandler(w, opts))
}
