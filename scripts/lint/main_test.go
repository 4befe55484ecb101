package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// TestEveryCheckFindsItsFault runs the program, as make lint does, on a package that has a fault for each of them.
func TestEveryCheckFindsItsFault(t *testing.T) {
	program := filepath.Join(t.TempDir(), "lint")
	if output, err := exec.CommandContext(t.Context(), "go", "build", "-o", program, ".").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, output)
	}
	output, err := exec.CommandContext(t.Context(), "go", "vet", "-vettool="+program, "./testdata/faults").CombinedOutput()
	if err == nil {
		t.Error("it has succeeded")
	}
	var found []string
	for _, match := range regexp.MustCompile(`\((\w+)[^()]*\)\n`).FindAllStringSubmatch(string(output), -1) {
		found = append(found, match[1])
	}
	slices.Sort(found)
	got := strings.Join(slices.Compact(found), " ")
	want := "bodyclose copyloopvar errcheck errorlint forbidigo govet ineffassign misspell noctx nolintlint revive rowserrcheck " +
		"sqlclosecheck staticcheck unconvert unused usetesting wastedassign"
	if got != want {
		t.Errorf("checks that found something: %s\nwant %s\n%s", got, want, output)
	}
	for file, excepted := range map[string]string{
		"faults.go":      "// it says why", // an exception with its reason
		"faults_test.go": "\tfile.Close()", // at the end of a test
	} {
		content, err := os.ReadFile(filepath.Join("testdata/faults", file))
		if err != nil {
			t.Fatal(err)
		}
		before, _, there := strings.Cut(string(content), excepted)
		place := fmt.Sprintf("%s:%d:", file, strings.Count(before, "\n")+1)
		if !there || strings.Contains(string(output), place) {
			t.Errorf("a finding at %s, which is excepted:\n%s", place, output)
		}
	}
}
