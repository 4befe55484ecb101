package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"
)

// runProcesses tells the story with two services that share nothing but the
// broker: identity, and billing with notifications.
func (m *Main) runProcesses(ctx context.Context) error {
	getenv := m.environment()
	if driver := getenv("EVENT_DRIVER"); driver == "" || driver == "in-memory" {
		return errors.New("--processes 2: in memory nothing reaches another process; set EVENT_DRIVER=kafka")
	}
	out := m.Out
	if m.summary == "json" {
		out = m.Err
	}
	n := newNarrator(out, m.Color)
	n.say("%s", n.paint(bold, "Three modules in two processes, driver "+getenv("EVENT_DRIVER")))
	namespace := "EVENT_NAMESPACE=" + getenv("EVENT_NAMESPACE")
	r := &remote{client: &http.Client{Timeout: 30 * time.Second}}
	var services []*child
	stop := func() (err error) {
		for _, c := range services {
			err = errors.Join(err, c.stop())
		}
		services = nil
		return err
	}
	for _, modules := range []string{"identity", "billing,notifications"} {
		c, err := startChild(ctx, n, modules, namespace)
		if err != nil {
			return errors.Join(err, stop())
		}
		services = append(services, c)
		n.say("  process %d runs %s at %s", c.command.Process.Pid, modules, c.url)
	}
	r.identity, r.others = services[0].url, services[1].url
	told, err := tell(ctx, n, r)
	if err = errors.Join(err, stop()); err != nil {
		return err
	}
	if told.ended() != endings {
		return fmt.Errorf("%d deliveries have ended, the story has %d", told.ended(), endings)
	}
	n.say("\n%s", n.paint(bold, "Summary of both"))
	return told.write(m.Out, m.summary)
}

// child is this program as a service.
type child struct {
	command *exec.Cmd
	url     string
	read    chan struct{} // closed when its output has ended
}

func startChild(ctx context.Context, n *narrator, modules string, environment ...string) (*child, error) {
	program, err := os.Executable()
	if err != nil {
		return nil, err
	}
	c := &child{command: exec.Command(program, "--serve", "--listen", "127.0.0.1:0", "--module", modules, "--summary", "json", "--narrate"), read: make(chan struct{})} //nolint:noctx // it ends with SIGTERM, in good order
	c.command.Env = append(os.Environ(), environment...)
	output, err := c.command.StderrPipe()
	if err != nil {
		return nil, err
	}
	if err := c.command.Start(); err != nil {
		return nil, fmt.Errorf("process for %s: %w", modules, err)
	}
	listening := make(chan string, 1)
	var said strings.Builder
	go func() {
		defer close(c.read)
		for lines := bufio.NewScanner(output); lines.Scan(); {
			if url, ok := strings.CutPrefix(lines.Text(), "listening on "); ok {
				listening <- url
				continue
			}
			if told, ok := strings.CutPrefix(lines.Text(), "  "); ok { // of the story
				n.say("  %s", told)
				continue
			}
			said.WriteString(lines.Text() + "\n")
		}
	}()
	select {
	case c.url = <-listening:
		return c, nil
	case <-c.read:
		return nil, errors.Join(fmt.Errorf("process for %s ended:\n%s", modules, said.String()), c.command.Wait())
	case <-ctx.Done():
		return nil, errors.Join(ctx.Err(), c.stop())
	}
}

// stop ends the service in good order and waits for it.
func (c *child) stop() error {
	if err := c.command.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	<-c.read
	return c.command.Wait()
}

// remote is the shop behind HTTP.
type remote struct {
	client           *http.Client
	identity, others string
}

func (r *remote) call(ctx context.Context, method, url string, body, result any) error {
	var content io.Reader
	if body != nil {
		text, err := json.Marshal(body)
		if err != nil {
			return err
		}
		content = bytes.NewReader(text)
	}
	request, err := http.NewRequestWithContext(ctx, method, url, content)
	if err != nil {
		return err
	}
	request.Header.Set("Content-Type", "application/json")
	response, err := r.client.Do(request)
	if err != nil {
		return err
	}
	defer func() { _ = response.Body.Close() }()
	text, err := io.ReadAll(io.LimitReader(response.Body, 1<<20))
	if err != nil {
		return err
	}
	if response.StatusCode >= 300 {
		return fmt.Errorf("%s %s: %s: %s", method, url, response.Status, text)
	}
	if result == nil {
		return nil
	}
	return json.Unmarshal(text, result)
}

func (r *remote) signUp(ctx context.Context, email, name string) (string, error) {
	var user struct {
		UserID string `json:"userId"`
	}
	err := r.call(ctx, http.MethodPost, r.identity+"/users", map[string]string{"email": email, "name": name}, &user)
	return user.UserID, err
}

func (r *remote) announce(ctx context.Context, userID string) error {
	return r.call(ctx, http.MethodPost, r.identity+"/users/"+userID+"/announcements", nil, nil)
}

func (r *remote) activate(ctx context.Context, userID, planID string) error {
	return r.call(ctx, http.MethodPost, r.others+"/subscriptions", map[string]string{"userId": userID, "planId": planID}, nil)
}

func (r *remote) stats(ctx context.Context) (summary, error) {
	var first, second summary
	err := errors.Join(r.call(ctx, http.MethodGet, r.identity+"/stats", nil, &first), r.call(ctx, http.MethodGet, r.others+"/stats", nil, &second))
	return first.plus(second), err
}
