package faults

import (
	"fmt"
	"strings"
	"time"

	"github.com/tidings-go/tidings/internal/line"
)

func restartServer(t *Trial, size Size) {
	t.begin(2, Work{}, usual)
	server := t.World.Server(t)
	for range size.Times {
		t.flow(80)
		t.faultAll()
		server.Kill(t)
		t.Hit()
		server.Start(t)
	}
	t.flow(80)
}

func serverGone(t *Trial, size Size) {
	t.begin(2, Work{}, usual)
	server := t.World.Server(t)
	t.flow(80)
	t.faultAll()
	server.Kill(t)
	t.Hit()
	Pause(size.Gone)
	server.Start(t)
	t.flow(80)
	t.note = fmt.Sprintf("gone for %v", size.Gone)
}

// faultAll tells the ledger that a fault hits every process.
func (t *Trial) faultAll() {
	for _, p := range t.all() {
		if !p.Gone() {
			p.Fault()
		}
	}
}

// brokerLine puts a line between the processes that are started from now on and
// the broker.
func (t *Trial) brokerLine() *line.Line {
	t.Helper()
	if t.World.Database {
		l := t.line(hostOf(t.Place.Database))
		t.Place.DatabaseLine = l.Address
		return l
	}
	l := t.line(hostOf(t.Place.Broker))
	t.Place.BrokerLine = l.Address
	return l
}

// line makes a line to a server, which ends with the test.
func (t *Trial) line(to string) *line.Line {
	t.Helper()
	l, err := line.New(to)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

// hostOf returns the host:port of an address.
func hostOf(address string) string {
	if _, rest, found := strings.Cut(address, "://"); found {
		address = rest
	}
	if _, rest, found := strings.Cut(address, "@"); found {
		address = rest
	}
	address, _, _ = strings.Cut(address, "/")
	address, _, _ = strings.Cut(address, ",")
	return address
}

func cutLines(t *Trial, size Size) {
	broker := t.brokerLine()
	t.begin(2, Work{}, usual)
	for range size.Times {
		t.flow(80)
		t.faultAll()
		broker.Cut()
		Pause(300 * time.Millisecond)
		broker.Restore()
		t.Hit()
	}
	t.flow(80)
}

func slowLines(t *Trial, size Size) {
	broker := t.brokerLine()
	broker.Slow(20 * time.Millisecond)
	t.begin(2, Work{}, usual)
	t.Hit()
	t.flow(100 * size.Times)
	broker.Slow(0)
}

func settleFails(t *Trial, size Size) {
	consumers, _ := t.begin(2, Work{}, usual)
	t.flow(60)
	for _, p := range consumers {
		p.Turn(SettleFails, true)
	}
	t.Hit()
	Pause(size.Gone)
	for _, p := range consumers {
		p.Turn(SettleFails, false)
	}
	t.flow(60)
	t.note = fmt.Sprintf("for %v", size.Gone)
}

func databaseGone(t *Trial, size Size) {
	database := t.line(hostOf(t.Place.Database))
	t.Place.DatabaseLine = database.Address
	t.begin(2, Work{}, usual)
	t.flow(60)
	t.faultAll()
	database.Cut()
	t.Hit()
	Pause(size.Gone)
	database.Restore()
	t.flow(60)
	t.note = fmt.Sprintf("gone for %v", size.Gone)
}

func poisoned(t *Trial) int {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := 0
	for _, s := range t.published {
		if s.Number%poisonEvery == poisonEvery-1 {
			n++
		}
	}
	return n
}

func deadLettersFail(t *Trial, size Size) {
	consumers, _ := t.begin(2, Work{PoisonEvery: poisonEvery}, Load{Aggregates: 12, Batch: 4, Pause: 50 * time.Millisecond, Events: 240})
	for _, p := range consumers {
		p.Turn(DeadLettersFail, true)
	}
	t.Hit()
	Pause(min(size.Gone, 10*time.Second))
	// Each of the 12 aggregates is held at its first poison.
	if n := t.Told(nil, wordDead); n > 0 {
		t.Errorf("%d dead letters while their store was gone", n)
	}
	for _, p := range consumers {
		p.Turn(DeadLettersFail, false)
	}
}

func jump(t *Trial, _ Size) {
	server := t.World.Server(t)
	t.begin(2, Work{Takes: 5 * time.Millisecond}, usual)
	defer server.Jump(t, 0)
	for _, by := range []time.Duration{time.Hour, 0, -time.Hour, 0} {
		t.flow(80)
		t.faultAll()
		server.Jump(t, by)
		t.Hit()
	}
	t.flow(80)
}

func diskFull(t *Trial, size Size) {
	place, fill, clear := t.World.Disk(t)
	t.Place = place
	t.begin(2, Work{}, usual)
	for range size.Times {
		t.flow(60)
		t.faultAll()
		fill()
		Pause(2 * time.Second)
		clear()
		t.Hit()
	}
	t.flow(60)
}
