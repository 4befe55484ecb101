package sqlstore

import (
	"context"
	"fmt"
	"io/fs"
	"sort"
	"strconv"
	"strings"
)

// Schema is the migrations of one database, in order. They are files named
// 0001_what.sql; the first line of each but the first may be "-- minimum: n": the
// oldest schema version a library may have been written for to work on the result
// (default: the version before, which is the N−1 rule).
type Schema struct {
	migrations []migration
	// Prefix of all names, instead of tidings_.
	Prefix string
}

type migration struct {
	version, minimum int
	name             string
	text             string
}

// ReadSchema reads migrations; they are embedded, so a mistake in them panics.
func ReadSchema(files fs.FS, prefix string) *Schema {
	names, err := fs.Glob(files, "migrations/*.sql")
	if err != nil || len(names) == 0 {
		panic(fmt.Sprintf("sqlstore: no migrations: %v", err))
	}
	sort.Strings(names)
	s := &Schema{Prefix: prefix}
	for n, name := range names {
		content, err := fs.ReadFile(files, name)
		if err != nil {
			panic(fmt.Sprintf("sqlstore: %v", err))
		}
		m := migration{version: n + 1, minimum: max(n, 1), name: strings.TrimSuffix(strings.TrimPrefix(name, "migrations/"), ".sql")}
		if number, _, _ := strings.Cut(m.name, "_"); number != fmt.Sprintf("%04d", m.version) {
			panic(fmt.Sprintf("sqlstore: migration %s is not number %d", name, m.version))
		}
		m.text = string(content)
		if first, _, _ := strings.Cut(m.text, "\n"); strings.HasPrefix(first, "-- minimum: ") {
			if m.minimum, err = strconv.Atoi(strings.TrimPrefix(first, "-- minimum: ")); err != nil {
				panic(fmt.Sprintf("sqlstore: migration %s: %v", name, err))
			}
		}
		m.text = strings.ReplaceAll(m.text, "tidings_", prefix)
		s.migrations = append(s.migrations, m)
	}
	return s
}

// Version is the newest.
func (s *Schema) Version() int { return len(s.migrations) }

// has reports whether any migration makes a table.
func (s *Schema) has(table string) bool {
	for _, m := range s.migrations {
		if strings.Contains(m.text, " "+s.Prefix+table+" (") {
			return true
		}
	}
	return false
}

// statements are what a migration runs: those of its file, which end with a
// semicolon at the end of a line, and the new version.
func (m migration) statements(prefix string) []string {
	var all []string
	for part := range strings.SplitSeq(m.text, ";\n") {
		var lines []string
		for line := range strings.SplitSeq(part, "\n") {
			if trimmed := strings.TrimSpace(line); trimmed != "" && !strings.HasPrefix(trimmed, "--") {
				lines = append(lines, line)
			}
		}
		if len(lines) > 0 {
			all = append(all, strings.Join(lines, "\n"))
		}
	}
	return append(all, m.record(prefix))
}

func (m migration) record(prefix string) string {
	if m.version == 1 {
		return fmt.Sprintf("INSERT INTO %sschema (only_row, version, minimum) VALUES (1, %d, %d)", prefix, m.version, m.minimum)
	}
	return fmt.Sprintf("UPDATE %sschema SET version = %d, minimum = %d", prefix, m.version, m.minimum)
}

// Text is everything from a version on, to read or to run with another tool.
func (s *Schema) Text(from int) string {
	var out strings.Builder
	for _, m := range s.migrations {
		if m.version > from {
			fmt.Fprintf(&out, "-- %s\n\n%s\n%s;\n\n", m.name, strings.TrimSpace(m.text), m.record(s.Prefix))
		}
	}
	return out.String()
}

// check compares what the database has with what this library needs.
func (s *Schema) check(ctx context.Context, run Statements) error {
	var version, minimum int
	found, err := run.One(ctx, "SELECT version, minimum FROM {schema}", nil, &version, &minimum)
	switch {
	case err != nil:
		return err
	case !found:
		return fmt.Errorf("%w: its table of versions is empty: call Migrate, or run what Schema prints", ErrSchema)
	case version < s.Version():
		return fmt.Errorf("%w: it has version %d and this library needs %d: call Migrate, or run what SchemaSince(%d) prints", ErrSchema, version, s.Version(), version)
	case minimum > s.Version():
		return fmt.Errorf("%w: it has version %d, which needs a library that knows %d or later, and this one knows %d: deploy a newer one", ErrSchema, version, minimum, s.Version())
	}
	return nil
}

// Apply runs the migrations that are missing. The caller holds a lock that keeps
// other instances out.
func (s *Schema) Apply(ctx context.Context, executor Executor) error {
	// The first statement makes the table of versions unless it exists.
	if _, err := executor.Exec(ctx, s.migrations[0].statements(s.Prefix)[0]); err != nil {
		return fmt.Errorf("migration %s: %w", s.migrations[0].name, err)
	}
	version, err := s.version(ctx, executor)
	if err != nil {
		return fmt.Errorf("read the version: %w", err)
	}
	for _, m := range s.migrations {
		if m.version <= version {
			continue
		}
		for _, statement := range m.statements(s.Prefix) {
			if _, err := executor.Exec(ctx, statement); err != nil {
				return fmt.Errorf("migration %s: %w", m.name, err)
			}
		}
	}
	return nil
}

// version is what the database has, 0 for nothing.
func (s *Schema) version(ctx context.Context, executor Executor) (version int, err error) {
	rows, err := executor.Query(ctx, "SELECT version FROM "+s.Prefix+"schema")
	if err != nil {
		return 0, err
	}
	for rows.Next() {
		if err := rows.Scan(&version); err != nil {
			_ = rows.Close() // the error of the scan says more
			return 0, err
		}
	}
	if err := rows.Err(); err != nil {
		return 0, err
	}
	return version, rows.Close()
}
