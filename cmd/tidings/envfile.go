package main

import (
	"bufio"
	"fmt"
	"os"
	"strings"
)

// readEnvFile puts the variables of --env-file behind those of the environment.
func (s *session) readEnvFile() error {
	if s.envFile == "" {
		return nil
	}
	file, err := os.Open(s.envFile)
	if err != nil {
		return usage("--env-file: %w", err)
	}
	defer func() { _ = file.Close() }() // it was only read
	variables := make(map[string]string)
	scanner := bufio.NewScanner(file)
	for number := 1; scanner.Scan(); number++ {
		name, value, err := variable(scanner.Text())
		if err != nil {
			return usage("--env-file %s, line %d: %w", s.envFile, number, err)
		}
		if name != "" {
			variables[name] = value
		}
	}
	if err := scanner.Err(); err != nil {
		return usage("--env-file %s: %w", s.envFile, err)
	}
	environment := s.getenv
	s.getenv = func(name string) string {
		if value := environment(name); value != "" {
			return value
		}
		return variables[name]
	}
	return nil
}

// variable reads one line: NAME=value, with the word export before it or without,
// the value bare or in quotes; nothing is substituted. Empty lines and comments
// have no name. An error repeats no value: it may be a password.
func variable(line string) (name, value string, err error) {
	line = strings.TrimSpace(line)
	if line == "" || strings.HasPrefix(line, "#") {
		return "", "", nil
	}
	name, value, found := strings.Cut(strings.TrimPrefix(line, "export "), "=")
	name, value = strings.TrimSpace(name), strings.TrimSpace(value)
	if !found || name == "" || strings.ContainsAny(name, " \t\"'") {
		return "", "", fmt.Errorf("it is not NAME=value")
	}
	for _, quote := range []string{`"`, "'"} {
		rest, quoted := strings.CutPrefix(value, quote)
		if !quoted {
			continue
		}
		if value, found = strings.CutSuffix(rest, quote); !found {
			return "", "", fmt.Errorf("%s: a quote is not closed", name)
		}
		return name, value, nil
	}
	return name, value, nil
}
