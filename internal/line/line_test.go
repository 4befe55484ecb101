package line_test

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/tidings-go/tidings/internal/line"
)

// patience is far more than anything here takes.
const patience = 30 * time.Second

// moment is how long a test looks at nothing happening: an error of what is silent
// shows within it, a slow machine makes nothing of it fail.
const moment = 100 * time.Millisecond

// side is one end of a connection.
type side struct {
	t *testing.T
	net.Conn
	*bufio.Reader
}

func (s side) Read(b []byte) (int, error) { return s.Reader.Read(b) }

func (s side) say(text string) {
	s.t.Helper()
	if _, err := io.WriteString(s.Conn, text+"\n"); err != nil {
		s.t.Fatal(err)
	}
}

func (s side) hears(want string) {
	s.t.Helper()
	_ = s.SetReadDeadline(time.Now().Add(patience))
	text, err := s.ReadString('\n')
	if err != nil || strings.TrimSpace(text) != want {
		s.t.Fatalf("heard %q, %v; want %q", text, err, want)
	}
}

// hearsNothing: neither a word nor an end.
func (s side) hearsNothing() {
	s.t.Helper()
	_ = s.SetReadDeadline(time.Now().Add(moment))
	if text, err := s.ReadString('\n'); !errors.Is(err, os.ErrDeadlineExceeded) {
		s.t.Fatalf("heard %q, %v on a silent line", text, err)
	}
}

// ends waits for the end of the connection.
func (s side) ends() {
	s.t.Helper()
	_ = s.SetReadDeadline(time.Now().Add(patience))
	if text, err := s.ReadString('\n'); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		s.t.Fatalf("heard %q, %v; want the end", text, err)
	}
}

// scene is a line with a server that hands its connections over.
type scene struct {
	t *testing.T
	*line.Line
	arrived chan net.Conn
}

func begin(t *testing.T) *scene {
	t.Helper()
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &scene{t: t, arrived: make(chan net.Conn)}
	over := make(chan struct{})
	go func() {
		defer close(over)
		for {
			c, err := listener.Accept()
			if err != nil {
				return
			}
			select {
			case s.arrived <- c:
			case <-t.Context().Done():
				_ = c.Close()
			}
		}
	}()
	if s.Line, err = line.New(listener.Addr().String()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		_ = listener.Close()
		<-over
	})
	return s
}

func (s *scene) side(c net.Conn) side {
	s.t.Cleanup(func() { _ = c.Close() })
	return side{s.t, c, bufio.NewReader(c)}
}

func (s *scene) dial() side {
	s.t.Helper()
	c, err := (&net.Dialer{Timeout: patience}).DialContext(s.t.Context(), "tcp", s.Address)
	if err != nil {
		s.t.Fatal(err)
	}
	return s.side(c)
}

func (s *scene) arrives() side {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), patience)
	defer cancel()
	select {
	case c := <-s.arrived:
		return s.side(c)
	case <-ctx.Done():
		s.t.Fatal("no connection has arrived at the server")
		panic("unreachable")
	}
}

// pair is a connection over which both have spoken.
func (s *scene) pair() (client, server side) {
	s.t.Helper()
	client, server = s.dial(), s.arrives()
	client.say("hello")
	server.hears("hello")
	server.say("well?")
	client.hears("well?")
	return client, server
}

func TestSilenceHoldsBackAndRestoreGoesOn(t *testing.T) {
	for _, d := range []line.Direction{line.ToServer, line.FromServer, line.Both} {
		t.Run(d.String(), func(t *testing.T) {
			t.Parallel()
			s := begin(t)
			client, server := s.pair()
			s.Silence(d)
			client.say("one")
			server.say("two")
			for _, way := range []struct {
				silent bool
				to     side
				word   string
			}{{d&line.ToServer != 0, server, "one"}, {d&line.FromServer != 0, client, "two"}} {
				if way.silent {
					way.to.hearsNothing()
				} else {
					way.to.hears(way.word)
				}
			}
			s.Restore()
			client.say("three")
			server.say("four")
			if d&line.ToServer != 0 {
				server.hears("one")
			}
			if d&line.FromServer != 0 {
				client.hears("two")
			}
			server.hears("three")
			client.hears("four")
		})
	}
}

func TestNobodyIsToldOfAnEndOnASilentLine(t *testing.T) {
	for name, end := range map[string]func(c net.Conn){
		"closed": func(c net.Conn) { _ = c.Close() },
		"reset":  func(c net.Conn) { _ = c.(*net.TCPConn).SetLinger(0); _ = c.Close() },
	} {
		t.Run("client "+name, func(t *testing.T) {
			t.Parallel()
			s := begin(t)
			client, server := s.pair()
			s.SilenceOpen(line.ToServer)
			end(client.Conn)
			server.hearsNothing()
			s.Restore() // those stay silent for good
			server.hearsNothing()
		})
		t.Run("server "+name, func(t *testing.T) {
			t.Parallel()
			s := begin(t)
			client, server := s.pair()
			s.Silence(line.FromServer)
			end(server.Conn)
			client.say("are you there?") // is refused there, which is not told here
			client.hearsNothing()
			s.Restore()
			client.ends()
		})
	}
}

func TestNewConnectionsWorkBesideSilentOnes(t *testing.T) {
	t.Parallel()
	s := begin(t)
	old, _ := s.pair()
	s.SilenceOpen(line.Both)
	s.pair()
	old.hearsNothing()
	if c := s.Counts(); c.Accepted != 2 || c.Open != 2 || c.Silent != 1 || c.ToServer != 2*int64(len("hello\n")) || c.FromServer != 2*int64(len("well?\n")) {
		t.Errorf("%+v", c)
	}
}

func TestNewConnectionsGetNothingFromADeadNetwork(t *testing.T) {
	t.Parallel()
	s := begin(t)
	s.Silence(line.Both)
	client := s.dial()
	client.say("hello")
	client.hearsNothing()
	select {
	case <-s.arrived:
		t.Fatal("the server was reached")
	default:
	}
	s.Restore()
	server := s.arrives()
	server.hears("hello")
	server.say("well?")
	client.hears("well?")
}

func TestEndsAreToldOtherwise(t *testing.T) {
	t.Parallel()
	s := begin(t)
	client, server := s.pair()
	_ = client.Conn.(*net.TCPConn).CloseWrite()
	server.ends()
	server.say("still here")
	client.hears("still here")
	_ = server.Close()
	client.ends()
}

func TestCutBreaksEveryConnection(t *testing.T) {
	t.Parallel()
	s := begin(t)
	client, server := s.pair()
	dead, other := s.pair()
	s.Silence(line.Both)
	s.Cut()
	for _, c := range []side{client, server, dead, other, s.dial()} {
		c.ends()
	}
	s.Restore()
	s.pair()
	s.Slow(time.Millisecond)
	s.pair()
}

func TestCloseEndsSilentConnections(t *testing.T) {
	t.Parallel()
	s := begin(t)
	client, server := s.pair()
	s.SilenceOpen(line.Both)
	client.say("into nothing")
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	client.ends()
	server.ends()
	if c := s.Counts(); c.Open != 0 || c.Accepted != 1 {
		t.Errorf("%+v", c)
	}
}
