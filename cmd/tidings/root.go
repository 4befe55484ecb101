package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/tidings-go/tidings/setup"
)

// What a run of the command ends with.
const (
	exitOK       = 0
	exitFailure  = 1 // it was tried and did not work
	exitUsage    = 2 // it was not tried: the command line or the environment is wrong
	exitFindings = 3 // it worked, and what it looked at needs somebody
)

// verbs is every command of the first level. A new one is a file of its own and a
// line here.
var verbs = []func(*session) *cobra.Command{
	relayVerb,
	outboxVerb,
	lanesVerb,
	deadVerb,
	subscriptionVerb,
	provisionVerb,
	doctorVerb,
	forgetVerb,
	versionVerb,
}

// streams are where a run reads and writes.
type streams struct {
	in       io.Reader
	out, err io.Writer
}

// errFindings ends a run with exitFindings; everything was said already.
var errFindings = errors.New("there are findings")

// usageError is an error of the command line or the environment.
type usageError struct{ err error }

func (e usageError) Error() string { return e.err.Error() }
func (e usageError) Unwrap() error { return e.err }

// usage makes an error of the command line.
func usage(format string, arguments ...any) error {
	return usageError{fmt.Errorf(format, arguments...)}
}

// run is the whole command, without the process: tests call it.
func run(ctx context.Context, s streams, getenv func(string) string, arguments []string) int {
	session := newSession(s, getenv)
	root := rootCommand(session)
	root.SetArgs(arguments)
	err := root.ExecuteContext(ctx)
	err = errors.Join(err, session.close(context.WithoutCancel(ctx)))
	code := exitCode(err, session.started)
	if err != nil && !errors.Is(err, errFindings) {
		session.sayError(err, code)
	}
	return code
}

func exitCode(err error, started bool) int {
	_, wrong := errors.AsType[usageError](err)
	switch {
	case err == nil:
		return exitOK
	case wrong, !started, errors.Is(err, setup.ErrConfiguration): // cobra's own complaints about flags, arguments and names
		return exitUsage
	case errors.Is(err, errFindings):
		return exitFindings
	}
	return exitFailure
}

func rootCommand(s *session) *cobra.Command {
	root := &cobra.Command{
		Use:   "tidings",
		Short: "Looks after the events of an application",
		Long: `tidings looks after the events of an application: it relays the outbox, shows and
mends what is parked or dead, and tells what is wrong with the broker.

It reads the variables that the application reads: EVENT_DRIVER, EVENT_NAMESPACE,
DATABASE_URL, SQLITE_PATH, KAFKA_…, REDIS_URL, AWS_… and SQS_….

Exit status: 0 it worked; 1 it did not; 2 the command line or the environment is
wrong; 3 it worked, and there are findings that need somebody.`,
		SilenceErrors: true, // run says them, with secrets masked
		SilenceUsage:  true,
		Version:       versionText(),
	}
	root.SetVersionTemplate("{{.Version}}\n")
	root.SetIn(s.streams.in)
	root.SetOut(s.streams.out)
	root.SetErr(s.streams.err)
	root.PersistentFlags().BoolVar(&s.json, "json", false, "write JSON to standard output (logs too, to standard error)")
	root.PersistentFlags().StringVar(&s.envFile, "env-file", "", "read variables from a file; those of the environment come first")
	root.PersistentPreRunE = func(*cobra.Command, []string) error { return s.readEnvFile() }
	for _, verb := range verbs {
		root.AddCommand(verb(s))
	}
	return root
}

// group is a command that has only others below it.
func group(use, short, long string, below ...*cobra.Command) *cobra.Command {
	command := &cobra.Command{Use: use, Short: short, Long: long, Args: cobra.ArbitraryArgs}
	command.AddCommand(below...)
	var names []string
	for _, one := range below {
		names = append(names, one.Name())
	}
	slices.Sort(names)
	command.RunE = func(command *cobra.Command, arguments []string) error {
		if len(arguments) > 0 {
			return usage("%s has no %q: it has %s", command.CommandPath(), arguments[0], strings.Join(names, ", "))
		}
		return usage("say which: %s with one of %s", command.CommandPath(), strings.Join(names, ", "))
	}
	return command
}
