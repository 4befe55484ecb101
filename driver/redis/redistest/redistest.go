// Package redistest starts Redis servers of its own for tests that need settings,
// restarts, flushes or a cluster.
package redistest

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/redis/rueidis"
)

// Server is a redis-server process on a loopback port.
type Server struct {
	t         testing.TB
	arguments []string
	port      int
	command   *exec.Cmd
}

// Start starts a server that keeps nothing, unless the arguments say otherwise.
// Where there is no redis-server the test is skipped, or fails where
// TIDINGS_REQUIRE_BROKERS is 1.
func Start(t testing.TB, arguments ...string) *Server {
	t.Helper()
	s := prepare(t, arguments...)
	s.Restart()
	return s
}

func prepare(t testing.TB, arguments ...string) *Server {
	t.Helper()
	if _, err := exec.LookPath("redis-server"); err != nil {
		if os.Getenv("TIDINGS_REQUIRE_BROKERS") == "1" {
			t.Fatalf("no redis-server, and TIDINGS_REQUIRE_BROKERS=1: %v", err)
		}
		t.Skip("no redis-server: scripts/brokers up redis installs it")
	}
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := listener.Addr().(*net.TCPAddr).Port
	_ = listener.Close()
	s := &Server{t: t, port: port}
	s.arguments = append([]string{
		"--port", strconv.Itoa(port), "--bind", "127.0.0.1", "--dir", t.TempDir(), "--save", "", "--appendonly", "no",
		"--enable-debug-command", "local",
	}, arguments...)
	t.Cleanup(s.Kill)
	return s
}

// URL is where the server is.
func (s *Server) URL() string { return "redis://" + s.Address() }

// Address is its host and port.
func (s *Server) Address() string { return "127.0.0.1:" + strconv.Itoa(s.port) }

// Restart starts the server again on its port and waits until it answers.
func (s *Server) Restart() {
	s.t.Helper()
	s.command = exec.Command("redis-server", s.arguments...) //nolint:noctx // its end is a part of the test
	if err := s.command.Start(); err != nil {
		s.t.Fatal(err)
	}
	deadline := time.Now().Add(10 * time.Second)
	for {
		client, err := rueidis.NewClient(s.option())
		if err == nil {
			err = client.Do(context.Background(), client.B().Ping().Build()).Error()
			client.Close()
			if err == nil {
				return
			}
		}
		if time.Now().After(deadline) {
			s.t.Fatalf("redis-server does not answer: %v", err)
		}
		timer := time.NewTimer(5 * time.Millisecond)
		<-timer.C
	}
}

func (s *Server) option() rueidis.ClientOption {
	return rueidis.ClientOption{InitAddress: []string{s.Address()}, DisableCache: true, ForceSingleClient: true}
}

// Kill ends the process at once.
func (s *Server) Kill() {
	if s.command == nil {
		return
	}
	_ = s.command.Process.Kill()
	_ = s.command.Wait() // "signal: killed"
	s.command = nil
}

// Do runs one command with a client of its own.
func (s *Server) Do(words ...string) rueidis.RedisResult {
	s.t.Helper()
	client, err := rueidis.NewClient(s.option())
	if err != nil {
		s.t.Fatal(err)
	}
	defer client.Close()
	return client.Do(context.Background(), client.B().Arbitrary(words...).Build())
}

// Cluster starts three nodes that share the slots.
func Cluster(t testing.TB) []*Server {
	t.Helper()
	var nodes []*Server
	for range 3 {
		nodes = append(nodes, Start(t, "--cluster-enabled", "yes", "--cluster-config-file", "nodes.conf", "--cluster-node-timeout", "2000"))
	}
	create := []string{"--cluster", "create"}
	for _, node := range nodes {
		create = append(create, node.Address())
	}
	if output, err := exec.Command("redis-cli", append(create, "--cluster-yes")...).CombinedOutput(); err != nil { //nolint:noctx // short
		t.Fatalf("redis-cli --cluster create: %v\n%s", err, output)
	}
	deadline := time.Now().Add(20 * time.Second)
	for _, node := range nodes {
		for {
			state, err := node.Do("CLUSTER", "INFO").ToString()
			if err == nil && strings.Contains(state, "cluster_state:ok") {
				break
			}
			if time.Now().After(deadline) {
				t.Fatal(fmt.Errorf("the cluster is not ready: %s: %w", state, err))
			}
			timer := time.NewTimer(20 * time.Millisecond)
			<-timer.C
		}
	}
	return nodes
}
