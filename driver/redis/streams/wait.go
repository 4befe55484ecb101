package streams

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/redis/rueidis"
)

// wait starts what waits for new entries: one command for all shards, and on a
// cluster, where a command's keys share a slot, one for each.
func (c *consumer) wait(ctx context.Context, group *sync.WaitGroup) {
	if c.driver.client.Mode() != rueidis.ClientModeCluster {
		group.Go(func() { c.watch(ctx, func(string) bool { return true }) })
		return
	}
	for stream := range c.channels {
		group.Go(func() { c.watch(ctx, func(other string) bool { return other == stream }) })
	}
}

// watch waits for entries after what was delivered, and wakes the reader. It waits
// again when the reader has read everything.
func (c *consumer) watch(ctx context.Context, of func(stream string) bool) {
	l := &line{client: c.driver.client, time: c.driver.waitTime}
	defer l.close()
	var before []string
	for ctx.Err() == nil {
		var keys, ids []string
		var watched []*shard
		c.mu.Lock()
		for _, s := range c.shards {
			if !of(s.stream) {
				continue
			}
			s.mu.Lock()
			if !s.full && !s.gone && !s.revoking && !s.pending {
				keys, ids = append(keys, s.stream), append(ids, s.cursor.String())
				watched = append(watched, s)
				s.watched = true
			}
			s.mu.Unlock()
		}
		c.mu.Unlock()
		if len(keys) == 0 {
			pause(ctx, pollUnwatched)
			continue
		}
		if at := append(slices.Clone(keys), ids...); slices.Equal(at, before) {
			pause(ctx, pollUnwatched) // the reader found nothing there
		} else {
			before = at
		}
		err := l.block(ctx, keys, ids)
		for _, s := range watched {
			s.mu.Lock()
			s.watched = false
			s.mu.Unlock()
		}
		switch {
		case ctx.Err() != nil:
			return
		case err == nil:
			c.mu.Lock()
			drained := c.drained
			c.mu.Unlock()
			c.wakeReader()
			select {
			case <-drained:
			case <-ctx.Done():
			}
		case rueidis.IsRedisNil(err):
			before = nil // nothing came
		default: // the reader meets the same failure and reports it
			pause(ctx, 100*time.Millisecond)
		}
	}
}

// line is a connection of its own for commands that wait. Its end is not waited
// for: closing it ends the command.
type line struct {
	client rueidis.Client
	time   time.Duration // how long one command waits
	own    rueidis.DedicatedClient
	cancel func()
}

// block returns nil when one of the streams has an entry after its id.
func (l *line) block(ctx context.Context, keys, ids []string) error {
	if l.own == nil {
		l.own, l.cancel = l.client.Dedicate()
	}
	own := l.own
	stop := context.AfterFunc(ctx, own.Close)
	defer stop()
	asking, cancel := context.WithTimeout(ctx, 10*l.time+5*time.Second) // where a connection died in silence
	defer cancel()
	err := own.Do(asking, own.B().Xread().Count(1).Block(l.time.Milliseconds()).Streams().Key(keys...).Id(ids...).Build()).Error()
	if err != nil && !rueidis.IsRedisNil(err) {
		l.close()
	}
	return err
}

func (l *line) close() {
	if l.own != nil {
		l.own.Close()
		l.cancel()
		l.own = nil
	}
}

func pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}
