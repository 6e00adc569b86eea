// Command gjallar is a Matrix homeserver, a bridge to other networks, and the
// tools around them. Each subcommand has a file of its own.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
)

// version is set by the linker for releases.
var version = "development"

// terminal is where a command reads and writes.
type terminal struct {
	in       io.Reader
	out, err io.Writer
	environ  []string
}

// command is a subcommand. Its help is one line; run prints the rest on -help.
type command struct {
	name, args, help string
	run              func(ctx context.Context, t *terminal, args []string) error
}

var commands = []command{
	{"serve", "[flags]", "run the homeserver, the bridge and the IRC listener (the default)", serve},
	{"bridge", "[flags]", "run the bridge alone, for another homeserver", runBridge},
	{"register", "[flags]", "write the registration file that another homeserver needs for the bridge", register},
	{"config", "[check FILE] [-protocol NAME]", "print the annotated defaults, or name every mistake in a file", configCommand},
	{"user", "add NAME [-admin]", "make an account", user},
	{"bench", "bridge [flags]", "measure the bridge against real IRC and XMPP servers", bench},
	{"version", "", "print the version", func(_ context.Context, t *terminal, _ []string) error {
		fmt.Fprintln(t.out, "gjallar", version)
		return nil
	}},
}

// pluginCommand is how the program starts itself again for a built-in backend.
const pluginCommand = "plugin"

func main() {
	if len(os.Args) == 3 && os.Args[1] == pluginCommand {
		os.Exit(servePlugin(os.Args[2]))
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	os.Exit(run(ctx, &terminal{os.Stdin, os.Stdout, os.Stderr, os.Environ()}, os.Args[1:]))
}

// run carries out a command line and returns the exit status: 0 done, 1 failed, 2
// used wrongly.
func run(ctx context.Context, t *terminal, args []string) int {
	name := "serve"
	if len(args) > 0 && !strings.HasPrefix(args[0], "-") {
		name, args = args[0], args[1:]
	}
	if name == "help" || name == "serve" && len(args) == 1 && (args[0] == "-h" || args[0] == "-help" || args[0] == "--help") {
		usage(t.out)
		return 0
	}
	for _, c := range commands {
		if c.name != name {
			continue
		}
		err := c.run(ctx, t, args)
		switch {
		case errors.Is(err, flag.ErrHelp):
			return 0
		case errors.Is(err, errTold):
			return 2
		case errors.Is(err, errUsage):
			fmt.Fprintln(t.err, err)
			return 2
		case err != nil:
			fmt.Fprintln(t.err, "gjallar:", err)
			return 1
		}
		return 0
	}
	fmt.Fprintf(t.err, "gjallar: no command %q; gjallar help lists them\n", name)
	return 2
}

// errUsage is wrapped by errors that say how a command is used.
var errUsage = errors.New("usage")

func usagef(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{errUsage}, args...)...)
}

func usage(w io.Writer) {
	fmt.Fprintln(w, "Gjallar is a Matrix homeserver with bridges to IRC, XMPP and other networks.\n\nUsage:")
	for _, c := range commands {
		fmt.Fprintf(w, "  gjallar %-42s %s\n", strings.TrimSpace(c.name+" "+c.args), c.help)
	}
	fmt.Fprintln(w, "\nFlags of serve:")
	fs, _ := newFlags("serve", w)
	fs.PrintDefaults()
}
