package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/tidings-go/tidings/driver"
	"github.com/tidings-go/tidings/setup"
)

// session is what the verbs of one run share.
type session struct {
	streams streams
	getenv  func(string) string
	masked  *masked

	json    bool
	envFile string

	makesFiles bool // a SQLite file that is missing is made
	started    bool // a verb runs: what goes wrong from now on is no mistake of usage
	closers    []func(context.Context) error
}

func newSession(s streams, getenv func(string) string) *session {
	m := &masked{to: s.err}
	s.err = m
	return &session{streams: s, getenv: getenv, masked: m}
}

// do makes the body of a verb out of a function: what fails before it is called is
// a mistake of usage.
func (s *session) do(body func(ctx context.Context, arguments []string) error) func(*cobra.Command, []string) error {
	return func(command *cobra.Command, arguments []string) error {
		s.started = true
		return body(command.Context(), arguments)
	}
}

// onClose adds what is closed when the run ends, the last first.
func (s *session) onClose(closer func(context.Context) error) { s.closers = append(s.closers, closer) }

const closeTime = 10 * time.Second

func (s *session) close(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, closeTime)
	defer cancel()
	var errs []error
	for n := len(s.closers) - 1; n >= 0; n-- {
		errs = append(errs, s.closers[n](ctx))
	}
	s.closers = nil
	return errors.Join(errs...)
}

// config reads the environment.
func (s *session) config() setup.Config {
	config := setup.Read(s.getenv)
	s.masked.hide(secrets(config, s.getenv)...)
	return config
}

// database opens the application's database, which must exist unless the verb
// makes things.
func (s *session) database(options *setup.DatabaseOptions) (setup.Database, error) {
	config := s.config()
	database, closer, err := setup.OpenDatabase(config, options)
	if err != nil {
		return nil, usageError{err}
	}
	s.onClose(func(context.Context) error { return closer.Close() })
	if path := config.SQLitePath; path != "" && path == config.DatabaseAddress() && !s.makesFiles {
		if _, err := os.Stat(path); err != nil { // opening would make it
			return nil, usage("SQLITE_PATH: %w: name the file that the application uses", err)
		}
	}
	return database, nil
}

// brokerTime bounds questions to a broker or a database that are not the verb's
// own work.
const brokerTime = 10 * time.Second

// driver makes the driver of the environment.
func (s *session) driver(ctx context.Context) (driver.Driver, error) {
	config := s.config()
	var database setup.Database
	if name := config.DriverName(); name == "postgres" || name == "sqlite" {
		var err error
		if database, err = s.database(nil); err != nil {
			return nil, err
		}
	}
	d, err := setup.OpenDriver(ctx, config, database, nil)
	if err != nil {
		return nil, usageError{err}
	}
	s.onClose(d.Close)
	return d, nil
}

// logger writes to standard error, as text or as JSON.
func (s *session) logger() *slog.Logger {
	if s.json {
		return slog.New(slog.NewJSONHandler(s.streams.err, nil))
	}
	return slog.New(slog.NewTextHandler(s.streams.err, nil))
}

// print writes a result to standard output: the value as JSON, or what text
// writes. Columns of text are separated by tabs.
func (s *session) print(value any, text func(w io.Writer)) error {
	if s.json {
		encoder := json.NewEncoder(s.streams.out)
		encoder.SetEscapeHTML(false)
		return encoder.Encode(value)
	}
	w := tabwriter.NewWriter(s.streams.out, 0, 0, 2, ' ', 0)
	text(w)
	return w.Flush()
}

// printf writes to a tabwriter, whose errors appear when it is flushed.
func printf(w io.Writer, format string, arguments ...any) {
	_, _ = fmt.Fprintf(w, format, arguments...)
}

// sayError writes an error to standard error.
func (s *session) sayError(err error, code int) {
	if s.json {
		text, _ := json.Marshal(map[string]any{"error": err.Error(), "exit": code}) // strings and a number
		printf(s.streams.err, "%s\n", text)
		return
	}
	printf(s.streams.err, "tidings: %s\n", strings.TrimPrefix(err.Error(), "tidings: "))
	if code == exitUsage {
		printf(s.streams.err, "See tidings --help, and docs/cli.md.\n")
	}
}

// age writes a duration for people: seconds below two minutes, then coarser.
func age(d time.Duration) string {
	switch {
	case d <= 0:
		return "0s"
	case d < 10*time.Second:
		return d.Round(time.Millisecond).String()
	case d < 48*time.Hour:
		return d.Round(time.Second).String()
	}
	return fmt.Sprintf("%dd", int(d.Hours()/24))
}

// moment writes a time for people and machines alike, or a dash for none.
func moment(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.UTC().Format("2006-01-02T15:04:05Z")
}

// oneLine shortens a text to one line of at most so many characters.
func oneLine(text string, most int) string {
	text = strings.Join(strings.Fields(text), " ")
	if runes := []rune(text); len(runes) > most {
		return string(runes[:most-1]) + "…"
	}
	return text
}
