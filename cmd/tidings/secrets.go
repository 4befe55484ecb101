package main

import (
	"bytes"
	"io"
	"net/url"
	"sync"

	"github.com/tidings-go/tidings/setup"
)

// secrets are the words of the environment that must not be written anywhere, as
// they stand there and as they are without the escapes of a URL.
func secrets(config setup.Config, getenv func(string) string) []string {
	found := []string{config.KafkaSASLPassword, getenv("AWS_SECRET_ACCESS_KEY"), getenv("AWS_SESSION_TOKEN")}
	for _, address := range []string{config.DatabaseURL, config.RedisURL} {
		u, err := url.Parse(address)
		if err != nil {
			continue // setup refuses it and does not repeat it
		}
		if password, ok := u.User.Password(); ok {
			found = append(found, password, url.QueryEscape(password), url.PathEscape(password))
		}
		if password := u.Query().Get("password"); password != "" {
			found = append(found, password, url.QueryEscape(password))
		}
	}
	return found
}

const mask = "xxxxx"

// masked writes everything but secrets. What it is given in one call is taken as
// whole: logs and errors are written so. It may be used by several goroutines.
type masked struct {
	to io.Writer

	mu     sync.Mutex
	hidden [][]byte
}

// hide adds words. Those of fewer than four characters would blank out ordinary
// text and are left.
func (m *masked) hide(words ...string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, word := range words {
		if len(word) >= 4 {
			m.hidden = append(m.hidden, []byte(word))
		}
	}
}

// Write implements [io.Writer].
func (m *masked) Write(text []byte) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	shown := text
	for _, word := range m.hidden {
		shown = bytes.ReplaceAll(shown, word, []byte(mask))
	}
	if _, err := m.to.Write(shown); err != nil {
		return 0, err
	}
	return len(text), nil
}
