package streams

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	"github.com/redis/rueidis"

	"github.com/tidings-go/tidings/driver"
)

// leases is [driver.Leases] over the shards of one subscription. A name is the
// key of a stream.
type leases struct {
	client  rueidis.Client
	members string
	owner   func(stream string) string

	mu      sync.Mutex
	held    map[string]int64
	seen    map[string]int64  // the highest epoch that this process knows of
	settled map[string]string // what the record said when the shard was acquired
}

var _ driver.Leases = (*leases)(nil)

// Join implements [driver.Leases].
func (l *leases) Join(ctx context.Context, _ string, member driver.Member, ttl time.Duration) (alive []driver.Member, err error) {
	knows, err := json.Marshal(member.Parts)
	if err != nil {
		return nil, err
	}
	entries, err := join.Exec(ctx, l.client, []string{l.members}, []string{member.Holder, number(ttl.Milliseconds()), string(knows)}).AsStrSlice()
	if err != nil {
		return nil, err
	}
	return membersIn(entries), nil
}

// membersIn reads the entries of the script join.
func membersIn(entries []string) []driver.Member {
	alive := make([]driver.Member, len(entries))
	for n, entry := range entries {
		holder, knows, _ := strings.Cut(entry, " ")
		alive[n].Holder = holder
		if json.Unmarshal([]byte(knows), &alive[n].Parts) != nil {
			alive[n].Parts = nil // written by another library: it is not waited for
		}
	}
	return alive
}

// Leave implements [driver.Leases].
func (l *leases) Leave(ctx context.Context, group, holder string) error {
	l.mu.Lock()
	var names []string
	for name := range l.held {
		names = append(names, name)
	}
	l.mu.Unlock()
	err := l.Release(ctx, group, holder, names)
	return errors.Join(err, leave.Exec(ctx, l.client, []string{l.members}, []string{holder}).Error())
}

// Acquire implements [driver.Leases]. Instances begin at different places, so
// that they seldom ask for the same.
func (l *leases) Acquire(ctx context.Context, _, holder string, names []string, limit int, ttl time.Duration) (taken []driver.Lease, err error) {
	start := 0
	if len(names) > 0 {
		start = rand.IntN(len(names))
	}
	for asked := 0; asked < len(names) && len(taken) < limit; {
		var calls []call
		var streams []string
		for ; asked < len(names) && len(calls) < limit-len(taken); asked++ {
			stream := names[(start+asked)%len(names)]
			l.mu.Lock()
			least := l.seen[stream]
			l.mu.Unlock()
			streams = append(streams, stream)
			calls = append(calls, call{[]string{l.owner(stream)}, []string{holder, number(ttl.Milliseconds()), number(least)}})
		}
		for n, result := range runAll(ctx, l.client, acquire, calls) {
			answer, failure := result.ToArray()
			if failure != nil || len(answer) != 2 {
				err = errors.Join(err, fmt.Errorf("%s: %w", streams[n], orUnexpected(failure)))
				continue
			}
			epoch, failure := answer[0].AsInt64()
			if failure != nil || epoch == 0 {
				err = errors.Join(err, failure)
				continue
			}
			settled, _ := answer[1].ToString()
			l.mu.Lock()
			l.held[streams[n]], l.seen[streams[n]], l.settled[streams[n]] = epoch, epoch, settled
			l.mu.Unlock()
			taken = append(taken, driver.Lease{Name: streams[n], Epoch: epoch})
		}
		if err != nil {
			break
		}
	}
	if len(taken) > 0 {
		return taken, nil // what failed is asked for again
	}
	return nil, err
}

var errUnexpected = errors.New("an answer of another form")

func orUnexpected(err error) error {
	if err == nil {
		return errUnexpected
	}
	return err
}

// Renew implements [driver.Leases].
func (l *leases) Renew(ctx context.Context, _, holder string, ttl time.Duration) (kept []driver.Lease, err error) {
	l.mu.Lock()
	var asked []driver.Lease
	var calls []call
	for stream, epoch := range l.held {
		asked = append(asked, driver.Lease{Name: stream, Epoch: epoch})
		calls = append(calls, call{[]string{l.owner(stream)}, []string{holder, number(epoch), number(ttl.Milliseconds())}})
	}
	l.mu.Unlock()
	for n, result := range runAll(ctx, l.client, renew, calls) {
		renewed, failure := result.AsInt64()
		switch {
		case failure != nil:
			err = errors.Join(err, failure)
		case renewed == 1:
			kept = append(kept, asked[n])
		default:
			l.drop(asked[n])
		}
	}
	if err != nil {
		return nil, err
	}
	return kept, nil
}

func (l *leases) drop(lease driver.Lease) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.held[lease.Name] == lease.Epoch {
		delete(l.held, lease.Name)
	}
}

// KeptSince implements [driver.Leases]: nobody keeps others from writing here.
func (l *leases) KeptSince() time.Time { return time.Time{} }

// Release implements [driver.Leases].
func (l *leases) Release(ctx context.Context, _, holder string, names []string) error {
	var calls []call
	l.mu.Lock()
	for _, stream := range names {
		if epoch, ok := l.held[stream]; ok {
			calls = append(calls, call{[]string{l.owner(stream)}, []string{holder, number(epoch)}})
			delete(l.held, stream)
		}
	}
	l.mu.Unlock()
	var err error
	for _, result := range runAll(ctx, l.client, release, calls) {
		err = errors.Join(err, result.Error())
	}
	return err
}

// recorded returns what the owner record had as settled when the shard was
// acquired.
func (l *leases) recorded(stream string) (settled id, known bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	settled, err := parseID(l.settled[stream])
	return settled, err == nil
}
