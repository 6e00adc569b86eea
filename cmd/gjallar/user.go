package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"

	"golang.org/x/term"

	"github.com/gjallar-im/gjallar/homeserver"
	"github.com/gjallar-im/gjallar/homeserver/matrix"
)

// user is `gjallar user add NAME`. It works beside a running server.
func user(ctx context.Context, t *terminal, args []string) error {
	if len(args) == 0 || args[0] != "add" {
		return usagef("gjallar user add NAME [-admin]")
	}
	fs, o := newFlags("user add", t.err)
	admin := fs.Bool("admin", false, "make an administrator of the server")
	name, err := parseWithName(func(args []string) error { return parse(fs, args) }, fs.Args, args[1:])
	if err != nil {
		return err
	}
	if name == "" {
		return usagef("gjallar user add NAME [-admin]")
	}
	c, err := o.load(t)
	if err != nil {
		return err
	}
	password, err := readPassword(t)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(c.Data, 0o700); err != nil {
		return err
	}
	d := &dataDir{path: c.Data}
	key, keyID, err := d.signingKey()
	if err != nil {
		return err
	}
	db, err := newDB(ctx, c, d, "gjallar.db")
	if err != nil {
		return err
	}
	hs, err := homeserver.New(ctx, homeserver.Options{
		ServerName: matrix.ServerName(c.ServerName), DB: db, Key: key, KeyID: keyID, MediaDir: d.file("media"), Registration: "closed", Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		return errors.Join(err, db.Close())
	}
	u, err := hs.CreateUser(ctx, name, password, *admin)
	hs.Close()
	if err := errors.Join(err, db.Close()); err != nil {
		return err
	}
	fmt.Fprintf(t.out, "%s can log in now.\n", u)
	return nil
}

// parseWithName parses flags that may stand before and after one name.
func parseWithName(parse func([]string) error, rest func() []string, args []string) (name string, err error) {
	for {
		if err := parse(args); err != nil {
			return "", err
		}
		args = rest()
		if len(args) == 0 {
			return name, nil
		}
		if name != "" {
			return "", usagef("one name, not %q too", args[0])
		}
		name, args = args[0], args[1:]
	}
}

// readPassword asks for it twice at a terminal, and otherwise reads one line.
func readPassword(t *terminal) (string, error) {
	f, ok := t.in.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) {
		line, err := bufio.NewReader(t.in).ReadString('\n')
		if err != nil && !errors.Is(err, io.EOF) {
			return "", err
		}
		if line = strings.TrimRight(line, "\r\n"); line == "" {
			return "", errors.New("no password: type it, or send it as the first line of the standard input")
		}
		return line, nil
	}
	ask := func(prompt string) (string, error) {
		fmt.Fprint(t.err, prompt)
		b, err := term.ReadPassword(int(f.Fd()))
		fmt.Fprintln(t.err)
		return string(b), err
	}
	first, err := ask("Password: ")
	if err != nil {
		return "", err
	}
	second, err := ask("Again: ")
	switch {
	case err != nil:
		return "", err
	case first == "":
		return "", errors.New("the password is empty")
	case first != second:
		return "", errors.New("the two are not the same")
	}
	return first, nil
}
