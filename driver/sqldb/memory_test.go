package sqldb

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/tidings-go/tidings/driver"
	"github.com/tidings-go/tidings/outbox"
)

// memoryLog is a Log in memory, for what a database need not be there.
type memoryLog struct {
	mu       sync.Mutex
	down     bool
	sequence int64
	pending  []outbox.Row
	log      [outbox.Slots][]outbox.Entry
	known    map[string]*[outbox.Slots]outbox.Progress
	leases   map[string]*memoryLease // by group and name
	members  map[string]memoryMember // by group and holder
	letters  []driver.DeadLetter
	wakes    []chan struct{}
}

type memoryMember struct {
	driver.Member
	until time.Time
}

type memoryLease struct {
	holder string
	epoch  int64
	until  time.Time
}

var _ outbox.Log = (*memoryLog)(nil)

var errDown = errors.New("connection refused")

func newMemoryLog() *memoryLog {
	return &memoryLog{known: map[string]*[outbox.Slots]outbox.Progress{}, leases: map[string]*memoryLease{}, members: map[string]memoryMember{}}
}

// lock begins a statement, unless the database is down.
func (l *memoryLog) lock() error {
	l.mu.Lock()
	if l.down {
		l.mu.Unlock()
		return errDown
	}
	return nil
}

func (l *memoryLog) setDown(down bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.down = down
}

func (l *memoryLog) wakeAll() {
	for _, wake := range l.wakes {
		select {
		case wake <- struct{}{}:
		default:
		}
	}
}

func (l *memoryLog) Append(_ context.Context, rows []outbox.Row) error {
	if err := l.lock(); err != nil {
		return err
	}
	defer l.mu.Unlock()
	for _, r := range rows {
		l.sequence++
		r.Sequence, r.CreatedAt = l.sequence, time.Now()
		r.Payload, r.Headers = slices.Clone(r.Payload), slices.Clone(r.Headers)
		l.pending = append(l.pending, r)
	}
	l.wakeAll()
	return nil
}

func (l *memoryLog) Number(_ context.Context, limit int) (int, error) {
	if err := l.lock(); err != nil {
		return 0, err
	}
	defer l.mu.Unlock()
	return l.number(limit), nil
}

func (l *memoryLog) number(limit int) int {
	n := min(limit, len(l.pending))
	for _, r := range l.pending[:n] {
		l.log[r.Slot] = append(l.log[r.Slot], outbox.Entry{Place: outbox.Place{Slot: r.Slot, Position: int64(len(l.log[r.Slot]))}, Row: r})
	}
	l.pending = l.pending[n:]
	if n > 0 {
		l.wakeAll()
	}
	return n
}

func (l *memoryLog) Read(_ context.Context, from []outbox.Place, channels []string, limit int) (all []outbox.Entry, err error) {
	if err := l.lock(); err != nil {
		return nil, err
	}
	defer l.mu.Unlock()
	for _, p := range from {
		entries := l.log[p.Slot][min(p.Position, int64(len(l.log[p.Slot]))):]
		for _, e := range entries[:min(limit, len(entries))] {
			if !slices.Contains(channels, e.Row.Channel) {
				e = outbox.Entry{Place: e.Place, Row: outbox.Row{Channel: e.Row.Channel}, Foreign: true}
			}
			all = append(all, e)
		}
	}
	return all, nil
}

func (l *memoryLog) Begin(_ context.Context, subscription string, start driver.StartAt) (bool, error) {
	if err := l.lock(); err != nil {
		return false, err
	}
	defer l.mu.Unlock()
	if l.known[subscription] != nil {
		return true, nil
	}
	l.number(len(l.pending))
	var at [outbox.Slots]outbox.Progress
	for slot := range at {
		at[slot].Slot = slot
		switch start.Mode {
		case driver.StartNow:
			at[slot].Position = int64(len(l.log[slot]))
		case driver.StartTime:
			at[slot].Since = start.Time
		}
	}
	l.known[subscription] = &at
	return false, nil
}

func (l *memoryLog) Progress(_ context.Context, subscription string, slots []int) (all []outbox.Progress, err error) {
	if err := l.lock(); err != nil {
		return nil, err
	}
	defer l.mu.Unlock()
	for _, slot := range slots {
		all = append(all, l.known[subscription][slot])
	}
	return all, nil
}

func (l *memoryLog) Commit(_ context.Context, group, holder, subscription string, leases []driver.Lease, progress []outbox.Progress) (refused []driver.Lease, err error) {
	if err := l.lock(); err != nil {
		return nil, err
	}
	defer l.mu.Unlock()
	for n, lease := range leases {
		held := l.leases[group+"/"+lease.Name]
		if held == nil || held.holder != holder || held.epoch != lease.Epoch || !held.until.After(time.Now()) {
			refused = append(refused, lease)
			continue
		}
		p := progress[n]
		p.Since = l.known[subscription][p.Slot].Since
		l.known[subscription][p.Slot] = p
	}
	return refused, nil
}

func (l *memoryLog) Trim(context.Context, time.Duration, int) (int, error) { return 0, nil }

func (l *memoryLog) Wake(context.Context) <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	wake := make(chan struct{}, 1)
	l.wakes = append(l.wakes, wake)
	return wake
}

func (l *memoryLog) Check(context.Context) error {
	if err := l.lock(); err != nil {
		return err
	}
	l.mu.Unlock()
	return nil
}

func (l *memoryLog) PutDeadLetter(_ context.Context, letter driver.DeadLetter) error {
	if err := l.lock(); err != nil {
		return err
	}
	defer l.mu.Unlock()
	l.letters = append(l.letters, letter)
	return nil
}

func (l *memoryLog) Join(_ context.Context, group string, member driver.Member, ttl time.Duration) (alive []driver.Member, err error) {
	if err := l.lock(); err != nil {
		return nil, err
	}
	defer l.mu.Unlock()
	l.members[group+"/"+member.Holder] = memoryMember{member, time.Now().Add(ttl)}
	for name, m := range l.members {
		if strings.HasPrefix(name, group+"/") && m.until.After(time.Now()) {
			alive = append(alive, m.Member)
		}
	}
	return alive, nil
}

func (l *memoryLog) Leave(_ context.Context, group, holder string) error {
	if err := l.lock(); err != nil {
		return err
	}
	defer l.mu.Unlock()
	delete(l.members, group+"/"+holder)
	for slot := range outbox.Slots {
		if held := l.leases[group+"/"+strconv.Itoa(slot)]; held != nil && held.holder == holder {
			held.holder = ""
		}
	}
	return nil
}

func (l *memoryLog) Acquire(_ context.Context, group, holder string, names []string, limit int, ttl time.Duration) (taken []driver.Lease, err error) {
	if err := l.lock(); err != nil {
		return nil, err
	}
	defer l.mu.Unlock()
	for _, name := range names {
		held := l.leases[group+"/"+name]
		if held == nil {
			held = &memoryLease{}
			l.leases[group+"/"+name] = held
		}
		if len(taken) < limit && (held.holder == "" || !held.until.After(time.Now())) {
			*held = memoryLease{holder: holder, epoch: held.epoch + 1, until: time.Now().Add(ttl)}
			taken = append(taken, driver.Lease{Name: name, Epoch: held.epoch})
		}
	}
	return taken, nil
}

func (l *memoryLog) Renew(_ context.Context, group, holder string, ttl time.Duration) (kept []driver.Lease, err error) {
	if err := l.lock(); err != nil {
		return nil, err
	}
	defer l.mu.Unlock()
	for slot := range outbox.Slots {
		name := strconv.Itoa(slot)
		if held := l.leases[group+"/"+name]; held != nil && held.holder == holder && held.until.After(time.Now()) {
			held.until = time.Now().Add(ttl)
			kept = append(kept, driver.Lease{Name: name, Epoch: held.epoch})
		}
	}
	return kept, nil
}

func (*memoryLog) KeptSince() time.Time { return time.Time{} }

func (l *memoryLog) Release(_ context.Context, group, holder string, names []string) error {
	if err := l.lock(); err != nil {
		return err
	}
	defer l.mu.Unlock()
	for _, name := range names {
		if held := l.leases[group+"/"+name]; held != nil && held.holder == holder {
			held.holder = ""
		}
	}
	return nil
}
