package sqldb

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"slices"
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
	log      map[outbox.Part][]outbox.Entry
	known    map[string]map[outbox.Part]outbox.Progress
	declared map[string][]driver.Declaration
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
	return &memoryLog{log: map[outbox.Part][]outbox.Entry{}, known: map[string]map[outbox.Part]outbox.Progress{}, declared: map[string][]driver.Declaration{}, leases: map[string]*memoryLease{}, members: map[string]memoryMember{}}
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
		part := outbox.Part{Channel: r.Channel, Slot: r.Slot}
		l.log[part] = append(l.log[part], outbox.Entry{Place: outbox.Place{Part: part, Position: int64(len(l.log[part]))}, Row: r})
	}
	l.pending = l.pending[n:]
	if n > 0 {
		l.wakeAll()
	}
	return n
}

func (l *memoryLog) Read(_ context.Context, from []outbox.Place, each, _ int) (all []outbox.Entry, more bool, err error) {
	if err := l.lock(); err != nil {
		return nil, false, err
	}
	defer l.mu.Unlock()
	for _, p := range from {
		entries := l.log[p.Part][min(p.Position, int64(len(l.log[p.Part]))):]
		all = append(all, entries[:min(each, len(entries))]...)
		more = more || len(entries) > each
	}
	return all, more, nil
}

func (l *memoryLog) Begin(_ context.Context, subscription string, channels []string, start driver.StartAt) (begun []string, err error) {
	if err := l.lock(); err != nil {
		return nil, err
	}
	defer l.mu.Unlock()
	l.number(len(l.pending))
	if l.known[subscription] == nil {
		l.known[subscription] = map[outbox.Part]outbox.Progress{}
	}
	for _, channel := range channels {
		if _, known := l.known[subscription][outbox.Part{Channel: channel}]; known {
			continue
		}
		begun = append(begun, channel)
		for _, part := range outbox.Parts(channel) {
			at := outbox.Progress{Place: outbox.Place{Part: part}}
			switch start.Mode {
			case driver.StartNow:
				at.Position = int64(len(l.log[part]))
			case driver.StartTime:
				at.Since = start.Time
			}
			l.known[subscription][part] = at
		}
	}
	return begun, nil
}

func (l *memoryLog) Progress(_ context.Context, subscription string, parts []outbox.Part) (all []outbox.Progress, err error) {
	if err := l.lock(); err != nil {
		return nil, err
	}
	defer l.mu.Unlock()
	for _, part := range parts {
		if at, known := l.known[subscription][part]; known {
			all = append(all, at)
		}
	}
	return all, nil
}

func (l *memoryLog) Declare(_ context.Context, subscription string, handled []driver.Declaration) ([]driver.Declaration, error) {
	if err := l.lock(); err != nil {
		return nil, err
	}
	defer l.mu.Unlock()
	all := append(l.declared[subscription], handled...)
	slices.SortFunc(all, func(a, b driver.Declaration) int {
		return cmp.Or(cmp.Compare(a.Channel, b.Channel), cmp.Compare(a.Type, b.Type))
	})
	l.declared[subscription] = slices.Compact(all)
	return slices.Clone(l.declared[subscription]), nil
}

func (l *memoryLog) Declared(_ context.Context, subscription string) ([]driver.Declaration, error) {
	if err := l.lock(); err != nil {
		return nil, err
	}
	defer l.mu.Unlock()
	return slices.Clone(l.declared[subscription]), nil
}

func (l *memoryLog) Rename(_ context.Context, former string, s driver.Subscription) (moved int64, err error) {
	if err := l.lock(); err != nil {
		return 0, err
	}
	defer l.mu.Unlock()
	if l.known[s.Name] == nil {
		l.known[s.Name] = maps.Clone(l.known[former])
	}
	moved = int64(len(l.declared[former]))
	l.declared[s.Name] = append(l.declared[s.Name], l.declared[former]...)
	delete(l.declared, former)
	return moved, nil
}

func (l *memoryLog) ForgetType(_ context.Context, subscription, eventType string) (known bool, err error) {
	if err := l.lock(); err != nil {
		return false, err
	}
	defer l.mu.Unlock()
	left := map[string]bool{}
	var gone []string
	l.declared[subscription] = slices.DeleteFunc(l.declared[subscription], func(d driver.Declaration) bool {
		if d.Type == eventType {
			gone = append(gone, d.Channel)
			return true
		}
		left[d.Channel] = true
		return false
	})
	for part := range l.known[subscription] {
		if slices.Contains(gone, part.Channel) && !left[part.Channel] {
			delete(l.known[subscription], part)
		}
	}
	return len(gone) > 0, nil
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
		p.Since = l.known[subscription][p.Part].Since
		l.known[subscription][p.Part] = p
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
	for name, held := range l.leases {
		if strings.HasPrefix(name, group+"/") && held.holder == holder {
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
	for name, held := range l.leases {
		if name, ours := strings.CutPrefix(name, group+"/"); ours && held.holder == holder && held.until.After(time.Now()) {
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
