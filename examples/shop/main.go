// Command shop is three modules of one application that tell each other what
// happened: identity signs users up, billing makes their profiles and activates
// subscriptions, notifications writes to them.
//
//	go run ./examples/shop                      the story, in this process
//	EVENT_DRIVER=kafka KAFKA_BROKERS=localhost:9092 go run ./examples/shop
//	EVENT_DRIVER=redis-streams make demo        the story on a broker that is started for it
//	EVENT_DRIVER=sqlite SQLITE_PATH=shop.db make demo
//	                                            the story in a database; killed at any moment, it goes on when it is started again
//	go run ./examples/shop --processes 2        the story, as two services (not in memory)
//	go run ./examples/shop --serve              the modules behind HTTP, until SIGTERM
//
// # Delivery, order, duplicates
//
// Those of the driver that EVENT_DRIVER names; no module knows which it is. With a
// database (the drivers sqlite and postgres; SQLITE_PATH or DATABASE_URL beside
// another one) rows and events are stored together, by outbox and inbox: nothing is
// lost and nothing has its effect twice, wherever the process is killed.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	m := &Main{Out: os.Stdout, Err: os.Stderr, Getenv: os.Getenv, Color: os.Getenv("NO_COLOR") == "" && isTerminal(os.Stdout) && isTerminal(os.Stderr)}
	err := m.Run(ctx, os.Args[1:])
	switch {
	case errors.Is(err, flag.ErrHelp):
	case err != nil:
		fmt.Fprintln(os.Stderr, "shop:", err)
		stop()
		os.Exit(1)
	}
}

// isTerminal reports whether a file is a character device other than the one that
// swallows everything.
func isTerminal(f *os.File) bool {
	info, err := f.Stat()
	if err != nil || info.Mode()&os.ModeCharDevice == 0 {
		return false
	}
	null, err := os.Stat(os.DevNull)
	return err != nil || !os.SameFile(info, null)
}

// Main is the program, so that a test can run it in its own process.
type Main struct {
	Out, Err io.Writer
	Getenv   func(string) string
	Color    bool
	// Listening is called with the address once the server listens. It may be
	// nil.
	Listening func(address string)

	modules   []string
	listen    string
	serve     bool
	narrate   bool
	processes int
	summary   string
	lease     time.Duration
	instance  string
}

var allModules = []string{"identity", "billing", "notifications"}

// Run parses the arguments and does what they say until it is done or ctx ends.
func (m *Main) Run(ctx context.Context, arguments []string) error {
	if err := m.parse(arguments); err != nil {
		return err
	}
	switch {
	case m.serve:
		return m.runServer(ctx)
	case m.processes > 1:
		return m.runProcesses(ctx)
	}
	return m.runDemo(ctx)
}

func (m *Main) parse(arguments []string) error {
	flags := flag.NewFlagSet("shop", flag.ContinueOnError)
	flags.SetOutput(m.Err)
	modules := flags.String("module", strings.Join(allModules, ","), "modules of this process, separated by commas")
	flags.StringVar(&m.listen, "listen", "127.0.0.1:8080", "address for --serve; port 0 chooses one")
	flags.BoolVar(&m.serve, "serve", false, "serve HTTP until SIGTERM instead of telling the story")
	flags.BoolVar(&m.narrate, "narrate", false, "with --serve: say who tells what to whom, as lines of JSON on standard error")
	flags.IntVar(&m.processes, "processes", 1, "1, or 2 to tell the story as two services")
	flags.StringVar(&m.summary, "summary", "text", "text or json")
	flags.DurationVar(&m.lease, "lease", 2*time.Second, "in a database: how long the events of a process that was killed wait for it")
	flags.StringVar(&m.instance, "instance", "", "on Kafka: a name by which this process is known when it comes back; each instance needs its own")
	if err := flags.Parse(arguments); err != nil {
		return err
	}
	var errs []error
	for module := range strings.SplitSeq(*modules, ",") {
		module = strings.TrimSpace(module)
		if !slices.Contains(allModules, module) {
			errs = append(errs, fmt.Errorf("--module %q: the modules are %s", module, strings.Join(allModules, ", ")))
		}
		m.modules = append(m.modules, module)
	}
	if m.summary != "text" && m.summary != "json" {
		errs = append(errs, fmt.Errorf("--summary %q: text or json", m.summary))
	}
	if m.lease < 300*time.Millisecond {
		errs = append(errs, fmt.Errorf("--lease %v: at least 300ms", m.lease))
	}
	if m.processes < 1 || m.processes > 2 {
		errs = append(errs, fmt.Errorf("--processes %d: 1 or 2", m.processes))
	}
	if !m.serve && len(m.modules) != len(allModules) {
		errs = append(errs, errors.New("--module is for --serve: the story needs all three"))
	}
	if flags.NArg() > 0 {
		errs = append(errs, fmt.Errorf("unknown arguments: %s", strings.Join(flags.Args(), " ")))
	}
	return errors.Join(errs...)
}

// stage is where the story is told: the output has only the summary where that is
// for programs.
func (m *Main) stage() io.Writer {
	if m.summary == "json" {
		return m.Err
	}
	return m.Out
}
