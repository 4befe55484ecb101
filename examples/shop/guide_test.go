package main

import (
	"bufio"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/tidings-go/tidings/driver/drivertest"
)

// What docs/getting-started.md tells a newcomer to write builds, passes its test
// and does what the page says, in memory, on a broker and in a database.
func TestTheGuideWorks(t *testing.T) {
	if testing.Short() {
		t.Skip("it builds a program of its own")
	}
	folder := newcomer(t)
	run := func(arguments ...string) string {
		t.Helper()
		command := exec.CommandContext(t.Context(), "go", arguments...)
		command.Dir = folder
		// The modules of this checkout are all that is needed.
		command.Env = append(os.Environ(), "GOFLAGS=-mod=mod", "GOPROXY=off", "GOWORK=off")
		output, err := command.CombinedOutput()
		if err != nil {
			t.Fatalf("go %s: %v\n%s", strings.Join(arguments, " "), err, output)
		}
		return string(output)
	}
	run("vet", "./...")
	if output := run("test", "-run", "TestANewUserGetsAProfile", "-v", "./billing"); !strings.Contains(output, "--- PASS: TestANewUserGetsAProfile") {
		t.Errorf("the guide's test did not run:\n%s", output)
	}
	run("build", "-o", "hello", ".")
	run("build", "-o", "hello-rows", "./rows")

	t.Run("in memory", func(t *testing.T) {
		greet(t, folder, "hello", "EVENT_DRIVER=", "EVENT_ENV=development")
	})
	t.Run("kafka", func(t *testing.T) {
		environment := map[string]string{"EVENT_DRIVER": "kafka", "KAFKA_BROKERS": drivertest.Server(t, "KAFKA_BROKERS")}
		greet(t, folder, "hello", "EVENT_DRIVER=kafka", "KAFKA_BROKERS="+environment["KAFKA_BROKERS"],
			"EVENT_NAMESPACE=guide-"+strings.ReplaceAll(time.Now().UTC().Format("150405.000000"), ".", "-"))
	})
	t.Run("sqlite", func(t *testing.T) {
		greet(t, folder, "hello-rows", "EVENT_DRIVER=sqlite", "SQLITE_PATH="+file(t))
	})
	t.Run("kafka and sqlite", func(t *testing.T) {
		greet(t, folder, "hello-rows", "EVENT_DRIVER=kafka", "KAFKA_BROKERS="+drivertest.Server(t, "KAFKA_BROKERS"), "SQLITE_PATH="+file(t),
			"EVENT_NAMESPACE=rows-"+strings.ReplaceAll(time.Now().UTC().Format("150405.000000"), ".", "-"))
	})
}

// newcomer writes the files of the guide, which name themselves in their first
// line, into a module of their own beside this checkout.
func newcomer(t *testing.T) (folder string) {
	t.Helper()
	checkout, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	page, err := os.ReadFile(filepath.Join(checkout, "docs", "getting-started.md"))
	if err != nil {
		t.Fatal(err)
	}
	ours, err := os.ReadFile(filepath.Join(checkout, "go.mod"))
	if err != nil {
		t.Fatal(err)
	}
	sums, err := os.ReadFile(filepath.Join(checkout, "go.sum"))
	if err != nil {
		t.Fatal(err)
	}
	folder = t.TempDir()
	write := func(name, text string) {
		t.Helper()
		path := filepath.Join(folder, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	const module = "github.com/tidings-go/tidings"
	write("go.mod", strings.Replace(string(ours), "module "+module, "module example.com/hello", 1)+
		"\nrequire "+module+" v0.0.0\nreplace "+module+" => "+checkout+"\n")
	write("go.sum", string(sums))
	files := regexp.MustCompile("(?s)```go\n// ([a-z_/.]+)\n(.*?)```").FindAllStringSubmatch(string(page), -1)
	if len(files) != strings.Count(string(page), "```go\n") || len(files) == 0 {
		t.Fatalf("%d of %d Go blocks of the guide name a file", len(files), strings.Count(string(page), "```go\n"))
	}
	for _, file := range files {
		write(file[1], file[2])
	}
	return folder
}

// greet runs a program of the guide until it has said what the page promises, and
// ends it as Ctrl-C does.
func greet(t *testing.T, folder, program string, environment ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	command := exec.CommandContext(ctx, filepath.Join(folder, program))
	command.Env = append(os.Environ(), environment...)
	var complaints strings.Builder
	command.Stderr = &complaints
	output, err := command.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	said := ""
	if lines := bufio.NewScanner(output); lines.Scan() {
		said = lines.Text()
	}
	if err := command.Process.Signal(os.Interrupt); err != nil {
		t.Error(err)
	}
	if err := command.Wait(); err != nil || said != "billing: a profile for ada@example.com" {
		t.Errorf("it said %q and ended with %v:\n%s", said, err, complaints.String())
	}
}
