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
func (m *Main) runProcesses(ctx context.Context) (err error) {
	driver := m.Getenv("EVENT_DRIVER")
	if driver == "" || driver == "in-memory" {
		return errors.New("--processes 2: in memory nothing reaches another process; set EVENT_DRIVER=kafka, redis-streams, sqs, redis, postgres or sqlite")
	}
	n := newNarrator(m.stage(), m.Color)
	n.say("%s", n.paint(bold, "Three modules in two processes, driver "+driver))
	s, err := m.prepare(ctx, n)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	alive, fail := context.WithCancelCause(ctx) // as long as both are
	defer fail(nil)
	var shared []string
	for _, name := range []string{"EVENT_NAMESPACE", "EVENT_CLAIMS", "SQS_FIFO", "SQLITE_PATH"} {
		shared = append(shared, name+"="+s.getenv(name))
	}
	var services []*child
	stop := func() (err error) {
		for _, c := range services {
			err = errors.Join(err, c.stop())
		}
		return err
	}
	for _, modules := range []string{"identity", "billing,notifications"} {
		c, err := startChild(alive, fail, n, modules, m.lease, shared...)
		if err != nil {
			return errors.Join(err, stop())
		}
		services = append(services, c)
		n.say("  process %d runs %s at %s", c.command.Process.Pid, modules, c.url)
	}
	r := &remote{client: &http.Client{Timeout: 30 * time.Second}, identity: services[0].url, others: services[1].url}
	told, err := s.tell(alive, n, r)
	if err = errors.Join(err, stop()); err != nil {
		return err
	}
	return s.end(ctx, m, n, "Summary of both", told)
}

// child is this program as a service.
type child struct {
	modules string
	command *exec.Cmd
	url     string
	said    strings.Builder // what is no part of the story
	read    chan struct{}   // closed when its output has ended
}

// startChild starts a service and waits until it listens. fail is called when it
// ends.
func startChild(ctx context.Context, fail context.CancelCauseFunc, n *narrator, modules string, lease time.Duration, environment ...string) (*child, error) {
	program, err := os.Executable()
	if err != nil {
		return nil, err
	}
	c := &child{modules: modules, read: make(chan struct{})}
	c.command = exec.Command(program, "--serve", "--listen", "127.0.0.1:0", "--module", modules, "--summary", "json", "--narrate", "--lease", lease.String(), "--instance", storyteller) //nolint:noctx // it ends with SIGTERM, in good order
	c.command.Env = append(os.Environ(), environment...)
	output, err := c.command.StderrPipe()
	if err != nil {
		return nil, err
	}
	if err := c.command.Start(); err != nil {
		return nil, fmt.Errorf("process for %s: %w", modules, err)
	}
	listening := make(chan string, 1)
	go func() {
		defer close(c.read)
		defer func() { fail(fmt.Errorf("the process for %s has ended", modules)) }()
		c.listen(output, n, listening)
	}()
	select {
	case c.url = <-listening:
		return c, nil
	case <-c.read:
		return nil, c.wait()
	case <-ctx.Done():
		return nil, errors.Join(context.Cause(ctx), c.stop())
	}
}

// listen reads what the service says until it ends.
func (c *child) listen(output io.Reader, n *narrator, listening chan<- string) {
	for reader := bufio.NewReader(output); ; {
		line, err := reader.ReadString('\n')
		var h happening
		if url, ok := strings.CutPrefix(line, "listening on "); ok {
			listening <- strings.TrimSpace(url)
		} else if strings.HasPrefix(line, "{") && json.Unmarshal([]byte(line), &h) == nil {
			n.report(h)
		} else {
			c.said.WriteString(line)
		}
		if err != nil {
			return
		}
	}
}

// stopTime is a little more than a service takes at most to end in good order.
const stopTime = 50 * time.Second

// stop ends the service in good order and waits for it.
func (c *child) stop() error {
	if err := c.command.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	timer := time.AfterFunc(stopTime, func() { _ = c.command.Process.Kill() })
	defer timer.Stop()
	<-c.read
	return c.wait()
}

// wait returns how the service ended, with what it said about that.
func (c *child) wait() error {
	if err := c.command.Wait(); err != nil {
		return fmt.Errorf("process for %s: %w\n%s", c.modules, err, strings.TrimSpace(c.said.String()))
	}
	return nil
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
