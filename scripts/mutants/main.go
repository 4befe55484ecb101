// Command mutants breaks the code on purpose, one break at a time, and shows
// which test notices. It works in a copy of the tree and fails when a break
// survives, no longer applies or does not compile, or when a test fails without
// any break.
//
//	go run ./scripts/mutants            all of them
//	go run ./scripts/mutants NAME...    those whose name contains one of the words
//
// The breaks are in breaks.txt beside this file.
package main

import (
	"bytes"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
)

//go:embed breaks.txt
var table string

// A mutant is one break: in file, old becomes new, and each of its tests must
// fail.
type mutant struct {
	name, harm, file string
	tests            []run
	old, new         string
}

// A run is what go test is told: a package, and which tests of it.
type run struct{ folder, tests string }

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := tryAll(ctx, os.Stdout, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "mutants:", err)
		os.Exit(1)
	}
}

func tryAll(ctx context.Context, out io.Writer, words []string) (err error) {
	mutants, err := parse(table)
	if err != nil {
		return err
	}
	if len(words) > 0 {
		mutants = slices.DeleteFunc(mutants, func(m mutant) bool {
			return !slices.ContainsFunc(words, func(word string) bool { return strings.Contains(m.name, word) })
		})
	}
	folder, err := os.MkdirTemp("", "mutants-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(folder)) }()
	if err := copyTree(ctx, folder); err != nil {
		return fmt.Errorf("copy the tree: %w", err)
	}
	survived := 0
	sound := map[run]bool{}
	for _, m := range mutants {
		for _, r := range m.tests {
			if sound[r] {
				continue
			}
			output, err := test(ctx, folder, r)
			if err != nil {
				return fmt.Errorf("%s: %v without the break:\n%s", m.name, r, output)
			}
			if !strings.Contains(output, "--- PASS") {
				return fmt.Errorf("%s: %v runs no test", m.name, r)
			}
			sound[r] = true
		}
		started := time.Now()
		verdict, caught := try(ctx, folder, m)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if !caught {
			survived++
			verdict += "\n    " + m.harm
		}
		fmt.Fprintf(out, "%-40s %-9s %5.1fs  %s\n", m.name, map[bool]string{true: "caught", false: "SURVIVED"}[caught], time.Since(started).Seconds(), verdict)
	}
	fmt.Fprintf(out, "\n%d breaks, %d caught\n", len(mutants), len(mutants)-survived)
	if survived > 0 {
		return fmt.Errorf("%d breaks survived", survived)
	}
	return nil
}

// try applies a break, runs its test and takes the break back.
func try(ctx context.Context, folder string, m mutant) (verdict string, caught bool) {
	path := filepath.Join(folder, m.file)
	whole, err := os.ReadFile(path)
	if err != nil {
		return err.Error(), false
	}
	if n := strings.Count(string(whole), m.old); n != 1 {
		return fmt.Sprintf("does not apply: %s has its text %d times", m.file, n), false
	}
	broken := strings.Replace(string(whole), m.old, m.new, 1)
	if err := os.WriteFile(path, []byte(broken), 0o600); err != nil {
		return err.Error(), false
	}
	defer os.WriteFile(path, whole, 0o600) //nolint:errcheck // the next break would say that it does not apply
	if output, err := command(ctx, folder, "go", "vet", "./"+filepath.Dir(m.file)); err != nil {
		return "does not compile: " + lastLine(output), false
	}
	var by []string
	for _, r := range m.tests {
		output, err := test(ctx, folder, r)
		if err == nil {
			return fmt.Sprintf("not noticed: %v passes", r), false
		}
		failed := failure.FindAllStringSubmatch(output, -1)
		switch {
		case failed != nil:
			by = append(by, failed[len(failed)-1][1]) // the innermost is the last
		case strings.Contains(output, "test timed out"), strings.Contains(output, "deadlock"), strings.Contains(output, "panic:"):
			by = append(by, fmt.Sprintf("%v, which does not end well", r))
		default:
			return fmt.Sprintf("%v did not run: %s", r, lastLine(output)), false
		}
	}
	return "by " + strings.Join(by, " and "), true
}

var failure = regexp.MustCompile(`(?m)^\s*--- FAIL: (\S+)`)

func test(ctx context.Context, folder string, r run) (string, error) {
	return command(ctx, folder, "go", "test", "-v", "-count=1", "-timeout=90s", "-run", r.tests, r.folder)
}

func (r run) String() string { return "go test -run '" + r.tests + "' " + r.folder }

func command(ctx context.Context, folder string, name string, arguments ...string) (string, error) {
	c := exec.CommandContext(ctx, name, arguments...)
	c.Dir = folder
	// A real broker has no part in this: each break is caught without one. What a
	// break keeps from coming is not waited for as long as on a busy machine.
	c.Env = append(os.Environ(), "KAFKA_BROKERS=", "TIDINGS_REQUIRE_BROKERS=", "TIDINGS_TEST_PATIENCE=5s")
	output, err := c.CombinedOutput()
	return string(output), err
}

func lastLine(output string) string {
	lines := strings.Split(strings.TrimSpace(output), "\n")
	return lines[len(lines)-1]
}

// parse reads the table: blocks that begin with "=== name", then lines with "#"
// (the harm), "file" and "test", then the old text between "---" and "+++", and
// the new text up to the next block.
func parse(text string) ([]mutant, error) {
	var mutants []mutant
	_, text, _ = strings.Cut(text, "\n=== ")
	for block := range strings.SplitSeq(text, "\n=== ") {
		head, change, ok := strings.Cut(block, "\n---\n")
		old, replacement, both := strings.Cut(change, "\n+++\n")
		if !ok || !both {
			return nil, fmt.Errorf("breaks.txt: block %q has no --- and +++", lastLine(head))
		}
		lines := strings.Split(head, "\n")
		m := mutant{name: lines[0], old: old, new: strings.TrimRight(replacement, "\n")}
		for _, line := range lines[1:] {
			word, value, _ := strings.Cut(line, " ")
			switch word {
			case "file":
				m.file = value
			case "test":
				folder, tests, _ := strings.Cut(value, " ")
				m.tests = append(m.tests, run{folder, tests})
			case "#":
				m.harm = value
			default:
				return nil, fmt.Errorf("breaks.txt: %s: unknown word %q", m.name, word)
			}
		}
		if m.file == "" || m.harm == "" || len(m.tests) == 0 {
			return nil, fmt.Errorf("breaks.txt: %s needs #, file and test", m.name)
		}
		mutants = append(mutants, m)
	}
	return mutants, nil
}

// copyTree copies what git knows and what it does not ignore.
func copyTree(ctx context.Context, to string) error {
	list, err := exec.CommandContext(ctx, "git", "ls-files", "--cached", "--others", "--exclude-standard", "-z").Output()
	if err != nil {
		return err
	}
	for name := range bytes.SplitSeq(bytes.TrimRight(list, "\x00"), []byte{0}) {
		from := string(name)
		content, err := os.ReadFile(from)
		if errors.Is(err, fs.ErrNotExist) {
			continue // deleted and not committed
		}
		if err != nil {
			return err
		}
		target := filepath.Join(to, from)
		if err := os.MkdirAll(filepath.Dir(target), 0o700); err != nil {
			return err
		}
		if err := os.WriteFile(target, content, 0o600); err != nil {
			return err
		}
	}
	return nil
}
