package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestExitStatusOfUsage(t *testing.T) {
	for name, test := range map[string]struct {
		arguments []string
		want      string
	}{
		"unknown verb":    {[]string{"fly"}, `unknown command "fly"`},
		"unknown below":   {[]string{"outbox", "fly"}, `tidings outbox has no "fly": it has discard, discarded, held, retry, schema, status`},
		"nothing below":   {[]string{"lanes"}, "say which: tidings lanes with one of ls, retry-head"},
		"unknown flag":    {[]string{"lanes", "ls", "--fast"}, "unknown flag: --fast"},
		"no argument":     {[]string{"lanes", "show"}, "accepts 3 arg(s), received 0"},
		"no database":     {[]string{"lanes", "ls"}, "neither DATABASE_URL nor SQLITE_PATH is set"},
		"no file":         {[]string{"lanes", "ls", "--env-file", "/nowhere/.env"}, "--env-file: open /nowhere/.env"},
		"odd limit":       {[]string{"lanes", "ls", "--limit", "0"}, "--limit is 0"},
		"odd time":        {[]string{"outbox", "status", "--every", "soon"}, "invalid argument"},
		"no reason":       {[]string{"lanes", "skip-head", "a.b", "c", "d"}, "say --reason"},
		"no reason, lane": {[]string{"lanes", "skip-lane", "a.b", "c", "d", "--reason", "  "}, "say --reason"},
		"odd database":    {[]string{"outbox", "schema", "--database", "oracle"}, `--database is "oracle"`},
		"no kind":         {[]string{"outbox", "schema"}, "or say --database"},
	} {
		t.Run(name, func(t *testing.T) {
			tool(t, nil, test.arguments...).want(t, exitUsage, test.want, "See tidings --help")
		})
	}
	tool(t, nil, "lanes", "ls", "--json").want(t, exitUsage, `{"error":"setup: neither`, `"exit":2}`)
}

func TestAFileThatIsMissingIsNotMade(t *testing.T) {
	path := filepath.Join(t.TempDir(), "missing.db")
	tool(t, environment{"SQLITE_PATH": path}, "lanes", "ls").want(t, exitUsage, "SQLITE_PATH", "name the file that the application uses")
	if _, err := os.Stat(path); err == nil {
		t.Error("the file was made")
	}
}

func TestVersionAndCompletion(t *testing.T) {
	tool(t, nil, "version").want(t, exitOK, "tidings ", "go1.")
	tool(t, nil, "--version").want(t, exitOK, "tidings ", "go1.")
	tool(t, nil, "version", "--json").want(t, exitOK, `"go":"go1.`)
	tool(t, nil, "completion", "bash").want(t, exitOK, "__start_tidings")
	tool(t, nil).want(t, exitOK, "Available Commands")
}

func TestEnvFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), ".env")
	content := "# where\n\nexport SQLITE_PATH='" + filepath.Join(t.TempDir(), "from-file.db") + "'\nEVENT_NAMESPACE=\"orders\"\n"
	if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	tool(t, nil, "lanes", "ls", "--env-file", file).want(t, exitUsage, "from-file.db")
	tool(t, environment{"SQLITE_PATH": "/nowhere/from-environment.db"}, "lanes", "ls", "--env-file", file).want(t, exitUsage, "from-environment.db")
	tool(t, nil, "outbox", "schema", "--env-file", file).want(t, exitOK, "CREATE TABLE orders_tidings_outbox")

	for _, line := range []string{"a secret word", "PASSWORD='hunter22", "A B=hunter22"} {
		if err := os.WriteFile(file, []byte("X=1\n"+line), 0o600); err != nil {
			t.Fatal(err)
		}
		o := tool(t, nil, "version", "--env-file", file).want(t, exitUsage, "line 2")
		if strings.Contains(o.err, "hunter22") || strings.Contains(o.err, "secret") {
			t.Errorf("the error repeats the line: %s", o.err)
		}
	}
}

// A password is planted everywhere one can be, every verb fails or logs, and
// nothing repeats it.
func TestNoSecretIsWritten(t *testing.T) {
	const secret = "correct-h0rse%21"
	for name, e := range map[string]environment{
		"postgres":        {"DATABASE_URL": "postgres://app:" + secret + "@127.0.0.1:1/app?password=" + secret + "&sslmode=disable"},
		"driver postgres": {"EVENT_DRIVER": "postgres", "DATABASE_URL": "postgres://app:" + secret + "@127.0.0.1:1/app?sslmode=disable"},
		"not an address":  {"DATABASE_URL": "postgres://app:" + secret + "@host:nonsense/app"},
		"mysql":           {"DATABASE_URL": "mysql://app:" + secret + "@127.0.0.1:1/app"},
		"odd mysql":       {"DATABASE_URL": "mysql://app:" + secret + "@127.0.0.1:1/app?tls=" + secret},
		"kafka":           {"EVENT_DRIVER": "kafka", "KAFKA_BROKERS": "kafka://app:" + secret + "@127.0.0.1:1", "KAFKA_SASL_PASSWORD": secret, "DATABASE_URL": "postgres://app:" + secret + "@127.0.0.1:1/app"},
		"redis":           {"EVENT_DRIVER": "redis-streams", "REDIS_URL": "redis://app:" + secret + "@127.0.0.1:1", "DATABASE_URL": "mysql://app:" + secret + "@127.0.0.1:1/app"},
	} {
		t.Run(name, func(t *testing.T) {
			for _, arguments := range [][]string{{"lanes", "ls"}, {"outbox", "status"}, {"relay"}} {
				for _, more := range []string{"--json", "--json=false"} {
					o := tool(t, e, append(arguments, more)...)
					for _, written := range []string{secret, "correct-h0rse!", "correct-h0rse%2521"} {
						if strings.Contains(o.out+o.err, written) {
							t.Errorf("%v %s: %s%s", arguments, more, o.out, o.err)
						}
					}
					if o.code == exitOK || o.err == "" {
						t.Errorf("%v: exit status %d, %q", arguments, o.code, o.err)
					}
				}
			}
		})
	}
}
