// Package line has a TCP proxy for tests: a line between a client and a server that
// falls silent without a word, is cut, or is slow.
//
// Silence is what a half-open network and a hung pooler look like: the connection
// stays open on both sides, what one side writes does not arrive at the other, and
// neither is told that the other has closed or died. Keepalives do not help against
// it, since the line itself still answers them.
package line

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

// Direction is in which direction a line is silent.
type Direction uint8

// The directions, seen from the client.
const (
	ToServer   Direction = 1 << iota // what clients write does not arrive
	FromServer                       // what the server writes does not arrive
	Both       = ToServer | FromServer
)

// String returns the direction in words.
func (d Direction) String() string {
	switch d {
	case ToServer:
		return "to the server"
	case FromServer:
		return "from the server"
	case Both:
		return "both ways"
	}
	return fmt.Sprintf("direction %d", uint8(d))
}

// Line is a proxy in front of one server. Make it with [New] and end it with Close.
// It is safe for concurrent use.
type Line struct {
	// Address is where it listens, host:port.
	Address string

	server   string
	listener net.Listener
	running  sync.WaitGroup

	mu      sync.Mutex
	changed sync.Cond // of everything below
	silent  Direction // of all connections, new ones too
	cut     bool
	closed  bool
	delay   time.Duration
	links   map[*link]bool
	counts  Counts
}

// Counts are what a line has seen so far.
type Counts struct {
	// Accepted is how many connections clients have opened in all, Open how many
	// of them are open on either side, Silent how many of these pass nothing in one
	// direction at least.
	Accepted, Open, Silent int
	// ToServer and FromServer are bytes that arrived.
	ToServer, FromServer int64
}

// link is one connection of a client and the one to the server that belongs to it.
type link struct {
	near, far net.Conn
	dead      Direction // for good
}

// New listens on a free port of the loopback and passes what it gets to a server,
// host:port. The server need not be there yet.
func New(server string) (*Line, error) {
	listener, err := (&net.ListenConfig{}).Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("line: %w", err)
	}
	l := &Line{Address: listener.Addr().String(), server: server, listener: listener, links: make(map[*link]bool)}
	l.changed.L = &l.mu
	l.running.Go(l.accept)
	return l, nil
}

// Silence makes all connections silent, those that are open and those that come: the
// network is dead. New ones are accepted and get no answer; where the server is not
// reached, it does not see them. What was on its way may still arrive.
func (l *Line) Silence(d Direction) { l.set(func() { l.silent |= d }) }

// SilenceOpen makes the connections that are open now silent, for good: Restore does
// not bring them back. New ones work. A firewall that has forgotten its connections
// does so, and a pooler whose old processes hang.
func (l *Line) SilenceOpen(d Direction) {
	l.set(func() {
		for k := range l.links {
			k.dead |= d
		}
	})
}

// Restore ends Silence: connections go on with what was held back, as TCP does when
// the network is there again. It ends Cut too.
func (l *Line) Restore() { l.set(func() { l.silent, l.cut = 0, false }) }

// Cut breaks every connection, silent ones too, and refuses new ones until Restore.
func (l *Line) Cut() {
	l.set(func() {
		l.cut = true
		l.breakAll()
	})
}

// Slow delays each piece of data in both directions; 0 ends that.
func (l *Line) Slow(delay time.Duration) { l.set(func() { l.delay = delay }) }

// Counts returns what the line has seen so far.
func (l *Line) Counts() Counts {
	l.mu.Lock()
	defer l.mu.Unlock()
	counts := l.counts
	counts.Open = len(l.links)
	for k := range l.links {
		if k.dead|l.silent != 0 {
			counts.Silent++
		}
	}
	return counts
}

// Close breaks every connection, listens no more, and waits until all is over. It
// may be called again.
func (l *Line) Close() error {
	err := l.listener.Close()
	if errors.Is(err, net.ErrClosed) {
		err = nil
	}
	l.set(func() {
		l.closed = true
		l.breakAll()
	})
	l.running.Wait()
	return err
}

func (l *Line) set(change func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	change()
	l.changed.Broadcast()
}

// breakAll closes both ends of all connections. The lock is held.
func (l *Line) breakAll() {
	for k := range l.links {
		k.close()
		delete(l.links, k) // whoever waits for it to speak again sees that it is gone
	}
}

func (k *link) close() {
	_ = k.near.Close()
	if k.far != nil {
		_ = k.far.Close()
	}
}

func (l *Line) accept() {
	for {
		near, err := l.listener.Accept()
		if err != nil {
			return
		}
		k := &link{near: near}
		l.mu.Lock()
		refused := l.cut || l.closed
		if !refused {
			l.links[k] = true
			l.counts.Accepted++
		}
		l.mu.Unlock()
		if refused {
			_ = near.Close()
			continue
		}
		l.running.Go(func() { l.carry(k) })
	}
}

// carry passes a connection on until both directions are over.
func (l *Line) carry(k *link) {
	defer l.set(func() {
		k.close()
		delete(l.links, k)
	})
	if !l.speaks(k, ToServer) { // nor does a server that cannot be reached see who calls
		return
	}
	far, err := (&net.Dialer{Timeout: 10 * time.Second}).DialContext(context.Background(), "tcp", l.server)
	if err != nil {
		return
	}
	l.mu.Lock()
	gone := !l.links[k]
	k.far = far
	l.mu.Unlock()
	if gone {
		return
	}
	var back sync.WaitGroup
	back.Go(func() { l.pass(k, FromServer, k.near, far, &l.counts.FromServer) })
	l.pass(k, ToServer, far, k.near, &l.counts.ToServer)
	back.Wait()
}

// speaks waits until a connection is not silent in a direction. It reports false when
// the connection is broken.
func (l *Line) speaks(k *link, d Direction) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for l.links[k] && (l.silent|k.dead)&d != 0 {
		l.changed.Wait()
	}
	return l.links[k]
}

// pass copies in one direction. What happens to one side is told to the other only
// while the direction to it is not silent.
func (l *Line) pass(k *link, d Direction, to, from net.Conn, count *int64) {
	buffer := make([]byte, 32<<10)
	for {
		n, err := from.Read(buffer)
		if !l.speaks(k, d) {
			return
		}
		if n > 0 {
			l.delayed(n, count)
			if _, err := to.Write(buffer[:n]); err != nil {
				if l.speaks(k, Both&^d) {
					reset(from)
				}
				return
			}
		}
		switch {
		case errors.Is(err, io.EOF):
			if half, ok := to.(*net.TCPConn); ok {
				_ = half.CloseWrite()
			}
			return
		case err != nil:
			reset(to)
			return
		}
	}
}

// delayed counts bytes and waits as long as the line is slow.
func (l *Line) delayed(n int, count *int64) {
	l.mu.Lock()
	delay := l.delay
	*count += int64(n)
	l.mu.Unlock()
	if delay > 0 {
		time.Sleep(delay)
	}
}

// reset ends a connection as a host does that knows nothing of it.
func reset(c net.Conn) {
	if t, ok := c.(*net.TCPConn); ok {
		_ = t.SetLinger(0)
	}
	_ = c.Close()
}
