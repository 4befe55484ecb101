package main

import (
	"context"
	"io"

	"github.com/spf13/cobra"

	"github.com/tidings-go/tidings/setup"
)

// schemas are stores that print their tables.
type schemas interface{ SchemaSince(version int) string }

// placeholders are addresses with which a store is made that nobody connects to.
var placeholders = map[string]setup.Config{
	"postgres": {DatabaseURL: "postgres://localhost/none"},
	"mysql":    {DatabaseURL: "mysql://localhost/none"},
	"sqlite":   {SQLitePath: "none"},
}

func outboxSchemaVerb(s *session) *cobra.Command {
	var since int
	var kind string
	command := &cobra.Command{
		Use: "schema", Short: "Prints the tables as SQL", Args: cobra.NoArgs,
		Long: `Prints the statements that make every table of tidings, for teams that change
their database with a tool of their own (and set EVENT_MIGRATE=never). Their names
begin with the namespace, where EVENT_NAMESPACE is set.

It connects to nothing. The kind of database is that of DATABASE_URL or
SQLITE_PATH, or what --database says.`,
		Example: "  tidings outbox schema --database postgres > migrations/0007_tidings.sql\n  tidings outbox schema --since 1           # only what came after version 1",
	}
	command.Flags().IntVar(&since, "since", 0, "leave out what a database of this version has; its table …schema says which")
	command.Flags().StringVar(&kind, "database", "", "postgres, mysql or sqlite")
	command.RunE = s.do(func(context.Context, []string) error {
		config := s.config()
		if kind != "" {
			other, known := placeholders[kind]
			if !known {
				return usage("--database is %q: postgres, mysql or sqlite", kind)
			}
			other.Namespace = config.Namespace
			config = other
		}
		if since < 0 {
			return usage("--since is %d: a version, 1 or later", since)
		}
		database, closer, err := setup.OpenDatabase(config, nil)
		if err != nil {
			return usage("%w; or say --database", err)
		}
		s.onClose(func(context.Context) error { return closer.Close() })
		store, ok := database.(schemas)
		if !ok {
			return usage("a %T prints no schema", database)
		}
		text := store.SchemaSince(since)
		value := struct {
			Since int    `json:"since"`
			SQL   string `json:"sql"`
		}{since, text}
		return s.print(value, func(io.Writer) { printf(s.streams.out, "%s", text) }) // past the tabwriter: SQL has tabs of its own
	})
	return command
}
