//go:build unix

package guarantees

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/tidings-go/tidings/driver/drivertest"
	"github.com/tidings-go/tidings/driver/drivertest/faults"
)

// ownServers gives worlds brokers that belong to this test alone and may be
// killed. Each is started when a trial first needs it and ends with the test.
func ownServers(t *testing.T, worlds []faults.World) []faults.World {
	for n := range worlds {
		w := &worlds[n]
		var start func(testing.TB) *faults.Server
		switch w.Name {
		case onKafka.Name:
			start = func(testing.TB) *faults.Server {
				return scripted(t, "kafka", "KAFKA_BROKERS", "TIDINGS_KAFKA_PORT", "TIDINGS_KAFKA_CONTROLLER_PORT")
			}
		case onKafkaThree.Name:
			start = func(testing.TB) *faults.Server { return threeKafkas(t) }
		case onStreams.Name, onRedis.Name:
			start = func(testing.TB) *faults.Server {
				return redisServer(t, "--appendonly", "yes", "--appendfsync", "always")
			}
		case onStreamsWeak.Name:
			start = func(testing.TB) *faults.Server { return redisServer(t, "--appendonly", "no", "--save", "") }
		case onPostgresClock.Name:
			start = func(testing.TB) *faults.Server { return postgresWithClock(t) }
		case onPostgresWorld.Name:
			start = func(testing.TB) *faults.Server {
				return scripted(t, "postgres", "TIDINGS_POSTGRES_URL", "TIDINGS_POSTGRES_PORT")
			}
		default:
			continue
		}
		w.Not = maps.Clone(w.Not)
		if w.Not == nil {
			w.Not = make(map[string]string)
		}
		switch {
		case w.Name == onStreams.Name || w.Name == onRedis.Name:
			w.Not["clock"] = "libfaketime and Redis's allocator do not go together"
		case w.Name == onPostgresWorld.Name:
			w.Not["clock"] = notHere
		case w.Name != onPostgresClock.Name:
			w.Not["clock"] = "no lease depends on this broker's wall clock in a way that could be tried"
		case fakeTime() == "":
			w.Not["clock"] = "libfaketime is not installed"
		}
		var once sync.Once
		var server *faults.Server
		w.Server = func(t testing.TB) *faults.Server {
			once.Do(func() { server = start(t) })
			if server == nil {
				t.Fatal("the server could not be started")
			}
			return server
		}
		w.Prepare = func(t testing.TB) faults.Place {
			s := w.Server(t)
			if w.Database {
				return newSchema(t, s.Address)
			}
			place := faults.Place{Namespace: newNamespace()}
			if w.Separate {
				place = newSchema(t, drivertest.Server(t, "TIDINGS_POSTGRES_URL"))
			}
			place.Broker = s.Address
			return place
		}
	}
	return worlds
}

// fakeTime is a library that moves the clock of a process (package faketime), or
// "".
func fakeTime() string {
	found, _ := filepath.Glob("/usr/lib/*/faketime/libfaketime.so.1")
	if len(found) == 0 {
		return ""
	}
	return found[0]
}

func freePort(t testing.TB) int {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	return l.Addr().(*net.TCPAddr).Port
}

// redisServer is one from the system's package.
func redisServer(t testing.TB, flags ...string) *faults.Server {
	t.Helper()
	port, folder := strconv.Itoa(freePort(t)), t.TempDir()
	var running *exec.Cmd
	server := &faults.Server{Address: "redis://127.0.0.1:" + port, Host: "127.0.0.1:" + port}
	end := func() {
		if running != nil {
			_ = running.Process.Kill()
			_ = running.Wait() // "signal: killed"
			running = nil
		}
	}
	server.Kill = func(testing.TB) { end() }
	server.Start = func(t testing.TB) {
		t.Helper()
		running = exec.Command("redis-server", append([]string{"--port", port, "--bind", "127.0.0.1", "--dir", folder}, flags...)...) //nolint:noctx,gosec // its end is a part of the test
		if err := running.Start(); err != nil {
			t.Fatal(err)
		}
		answers(t, 30*time.Second, func() bool {
			c, err := (&net.Dialer{Timeout: time.Second}).DialContext(context.Background(), "tcp", server.Host)
			if err != nil {
				return false
			}
			defer func() { _ = c.Close() }()
			_ = c.SetDeadline(time.Now().Add(time.Second))
			_, _ = c.Write([]byte("PING\r\n"))
			answer := make([]byte, 5)
			n, _ := c.Read(answer)
			return string(answer[:n]) == "+PONG"
		})
	}
	server.Start(t)
	t.Cleanup(end)
	return server
}

func answers(t testing.TB, within time.Duration, ask func() bool) {
	t.Helper()
	for deadline := time.Now().Add(within); !ask(); faults.Pause(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("the server does not answer within %v", within)
		}
	}
}

// home is a folder of scripts/brokers for servers of this test: what is large and
// was fetched before is taken from the shared one.
type home struct {
	folder      string
	environment []string
}

func newHome(t testing.TB, ports ...string) *home {
	t.Helper()
	folder := t.TempDir()
	if err := os.Chmod(folder, 0o755); err != nil { //nolint:gosec // PostgreSQL runs as a user of its own
		t.Fatal(err)
	}
	shared := os.Getenv("TIDINGS_BROKERS_HOME")
	if shared == "" {
		cache := os.Getenv("XDG_CACHE_HOME")
		if cache == "" {
			cache = filepath.Join(os.Getenv("HOME"), ".cache")
		}
		shared = filepath.Join(cache, "tidings-brokers")
	}
	libraries, err := filepath.Glob(filepath.Join(shared, "*-libraries-*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, from := range libraries {
		// A link to the folder would not do: what is fetched is counted by its files.
		if err := linkAll(from, filepath.Join(folder, filepath.Base(from))); err != nil {
			t.Logf("it will be fetched again: %v", err)
		}
	}
	h := &home{folder: folder}
	t.Cleanup(func() { // scripts/brokers keeps the data of PostgreSQL there when root starts it
		if err := os.RemoveAll(h.data()); err != nil {
			t.Log(err)
		}
	})
	for _, pair := range os.Environ() { // an endpoint that is given would be taken for ours
		name, _, _ := strings.Cut(pair, "=")
		switch name {
		case "KAFKA_BROKERS", "TIDINGS_KAFKA3_BROKERS", "TIDINGS_POSTGRES_URL":
		default:
			h.environment = append(h.environment, pair)
		}
	}
	h.environment = append(h.environment, "TIDINGS_BROKERS_HOME="+folder)
	h.environment = append(h.environment, ports...)
	return h
}

// linkAll makes a folder of links to the files of another, or copies them where
// they lie on different disks.
func linkAll(from, to string) error {
	entries, err := os.ReadDir(from)
	if err != nil {
		return err
	}
	if err := os.Mkdir(to, 0o700); err != nil {
		return err
	}
	for _, e := range entries {
		old, link := filepath.Join(from, e.Name()), filepath.Join(to, e.Name())
		if os.Link(old, link) == nil {
			continue
		}
		content, err := os.ReadFile(old)
		if err == nil {
			err = os.WriteFile(link, content, 0o600)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// data is where PostgreSQL's is when root starts it.
func (h *home) data() string {
	sum := sha256.Sum256([]byte(h.folder))
	return "/var/tmp/tidings-postgres-" + hex.EncodeToString(sum[:])[:12]
}

func (h *home) brokers(t testing.TB, arguments ...string) string {
	t.Helper()
	command := exec.Command("../../scripts/brokers", arguments...) //nolint:noctx,gosec // a script of ours
	command.Env = h.environment
	// What it starts would keep a pipe open.
	said := filepath.Join(h.folder, "said")
	output, err := os.Create(said)
	if err != nil {
		t.Fatal(err)
	}
	command.Stdout, command.Stderr = output, output
	err = command.Run()
	_ = output.Close()
	text, _ := os.ReadFile(said)
	if err != nil {
		t.Fatalf("scripts/brokers %v: %v\n%s", arguments, err, text)
	}
	return string(text)
}

func (h *home) variable(t testing.TB, name string) string {
	t.Helper()
	for line := range strings.Lines(h.brokers(t, "env")) {
		if value, found := strings.CutPrefix(strings.TrimSpace(line), "export "+name+"="); found {
			return strings.NewReplacer(`\`, "").Replace(value)
		}
	}
	t.Fatalf("scripts/brokers env names no %s", name)
	return ""
}

// kill ends a process of the home with SIGKILL, and returns its pid.
func (h *home) kill(t testing.TB, process string) int {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(h.folder, "run", process+".pid"))
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Errorf("kill %s: %v", process, err)
	}
	answers(t, 10*time.Second, func() bool { return syscall.Kill(pid, 0) != nil || isZombie(pid) })
	return pid
}

// isZombie reports whether a process is dead and only its entry is left.
func isZombie(pid int) bool {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err != nil || strings.Contains(string(status), ") Z ")
}

// scripted is a server that scripts/brokers starts.
func scripted(t testing.TB, name, variable string, ports ...string) *faults.Server {
	t.Helper()
	for n := range ports {
		ports[n] += "=" + strconv.Itoa(freePort(t))
	}
	h := newHome(t, ports...)
	t.Cleanup(func() { h.brokers(t, "down") })
	h.brokers(t, "up", name)
	address := h.variable(t, variable)
	return &faults.Server{
		Address: address, Host: address,
		Kill: func(t testing.TB) {
			pid := h.kill(t, name)
			if name == "postgres" {
				h.forget(t, pid)
			}
		},
		Start: func(t testing.TB) { h.brokers(t, "up", name) },
	}
}

// forget waits for the children of a PostgreSQL that was killed, and removes its
// lock file where its parent has not collected it: a dead process that is still
// listed looks to the next server like a living one.
func (h *home) forget(t testing.TB, pid int) {
	t.Helper()
	for _, lock := range []string{filepath.Join(h.data(), "data", "postmaster.pid"), filepath.Join(h.folder, "postgres", "data", "postmaster.pid")} {
		text, err := os.ReadFile(lock)
		first, _, _ := strings.Cut(string(text), "\n")
		if err != nil || first != strconv.Itoa(pid) {
			continue
		}
		answers(t, 20*time.Second, func() bool { return !hasChildren(filepath.Dir(lock)) })
		if err := os.Remove(lock); err != nil && !os.IsNotExist(err) {
			t.Error(err)
		}
	}
}

// hasChildren reports whether a process works in a data folder.
func hasChildren(folder string) bool {
	links, err := filepath.Glob("/proc/[0-9]*/cwd")
	if err != nil {
		return false
	}
	for _, link := range links {
		if at, err := os.Readlink(link); err == nil && at == folder {
			return true
		}
	}
	return false
}

// postgresWithClock is a server whose clock the test moves.
func postgresWithClock(t testing.TB) *faults.Server {
	t.Helper()
	clock := filepath.Join(t.TempDir(), "clock")
	jump := func(t testing.TB, by time.Duration) {
		t.Helper()
		if err := os.WriteFile(clock, fmt.Appendf(nil, "%+d", int(by.Seconds())), 0o644); err != nil { //nolint:gosec // the server is another user
			t.Fatal(err)
		}
	}
	jump(t, 0)
	for folder := filepath.Dir(clock); folder != "/"; folder = filepath.Dir(folder) {
		if strings.HasPrefix(filepath.Base(filepath.Dir(folder)), "Test") || strings.HasPrefix(filepath.Base(folder), "Test") {
			if err := os.Chmod(folder, 0o755); err != nil { //nolint:gosec // the server is another user
				t.Fatal(err)
			}
		}
	}
	variables := []string{"TIDINGS_POSTGRES_PORT=" + strconv.Itoa(freePort(t))}
	if fake := fakeTime(); fake != "" {
		variables = append(variables, "LD_PRELOAD="+fake, "FAKETIME_TIMESTAMP_FILE="+clock, "FAKETIME_NO_CACHE=1", "DONT_FAKE_MONOTONIC=1")
	}
	h := newHome(t, variables...)
	t.Cleanup(func() { h.brokers(t, "down") })
	h.brokers(t, "up", "postgres")
	return &faults.Server{Address: h.variable(t, "TIDINGS_POSTGRES_URL"), Jump: jump}
}

// threeKafkas are three brokers, of which the first, the second and the third are
// killed in turn.
func threeKafkas(t testing.TB) *faults.Server {
	t.Helper()
	h := newHome(t, "TIDINGS_KAFKA3_PORT="+strconv.Itoa(freeRun(t)), "TIDINGS_KAFKA3_CONTROLLER_PORT="+strconv.Itoa(freeRun(t)))
	t.Cleanup(func() { h.brokers(t, "down") })
	h.brokers(t, "up", "kafka3")
	address, kills := h.variable(t, "TIDINGS_KAFKA3_BROKERS"), 0
	return &faults.Server{
		Address: address, Host: address,
		Kill: func(t testing.TB) {
			kills++
			h.kill(t, fmt.Sprintf("kafka3-%d", kills%3+1))
		},
		Start: func(t testing.TB) { h.brokers(t, "up", "kafka3") },
	}
}

// freeRun is the first of three free ports.
func freeRun(t testing.TB) int {
	t.Helper()
	for {
		first := freePort(t)
		free := first < 65000
		for n := range 3 {
			l, err := (&net.ListenConfig{}).Listen(context.Background(), "tcp", fmt.Sprintf("127.0.0.1:%d", first+n))
			if err != nil {
				free = false
				continue
			}
			_ = l.Close()
		}
		if free {
			return first
		}
	}
}
