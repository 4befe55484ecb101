package streams

import (
	"context"
	"errors"
	"fmt"

	"github.com/redis/rueidis"

	"github.com/tidings-go/tidings/driver"
	"github.com/tidings-go/tidings/driver/redis/internal/wire"
)

const (
	chunkEntries = 256
	chunkBytes   = 1 << 20
)

// Publish implements [driver.Driver]. The messages of one shard are appended in
// order, up to 256 by one script; shards go at once. A message over the limit is
// refused before anything is sent.
func (d *Driver) Publish(ctx context.Context, messages []driver.Message) error {
	if len(messages) == 0 {
		return nil
	}
	if !d.calls.Enter() {
		return errClosed
	}
	defer d.calls.Leave()
	if ctx.Err() != nil {
		return fmt.Errorf("streams: nothing was sent: %w", context.Cause(ctx))
	}
	byStream := make(map[string]*appending)
	var order []*appending
	for n := range messages {
		m := &messages[n]
		if size := messageSize(m); size > d.options.MaxMessageBytes {
			return fmt.Errorf("streams: %s %s: %w: %d bytes with key and headers, Options.MaxMessageBytes is %d", m.Type, m.ID, driver.ErrTooLarge, size, d.options.MaxMessageBytes)
		}
		if err := d.prepare(ctx, m.Channel); err != nil {
			return err
		}
		stream := d.streamOf(m.Channel, m.Key)
		a := byStream[stream]
		if a == nil {
			a = &appending{stream: stream}
			byStream[stream] = a
			order = append(order, a)
		}
		a.messages = append(a.messages, n)
	}
	results := make([]driver.PublishResult, len(messages))
	failed := false
	for {
		var calls []call
		var asked []*appending
		for _, a := range order {
			if a.next < len(a.messages) {
				calls = append(calls, a.chunk(messages))
				asked = append(asked, a)
			}
		}
		if len(calls) == 0 {
			break
		}
		for n, result := range runAll(ctx, d.client, add, calls) {
			failed = asked[n].answered(result, results) || failed
		}
	}
	if failed {
		return &driver.PublishError{Results: results}
	}
	return nil
}

// appending is what one call has for one stream.
type appending struct {
	stream   string
	messages []int // indexes into the call's
	next     int   // what is not sent yet
	sent     int   // what the chunk under way has
}

func (a *appending) chunk(messages []driver.Message) call {
	c := call{keys: []string{a.stream}}
	bytes := 0
	a.sent = 0
	for _, n := range a.messages[a.next:] {
		m := &messages[n]
		size := messageSize(m)
		if a.sent == chunkEntries || a.sent > 0 && bytes+size > chunkBytes {
			break
		}
		bytes += size
		a.sent++
		fields := wire.Fields(m.Headers, m.Key, m.Body)
		c.arguments = append(append(c.arguments, number(int64(len(fields)))), fields...)
	}
	return c
}

// answered takes the outcome of the chunk and reports whether anything failed;
// nothing more of the stream is sent then.
func (a *appending) answered(result rueidis.RedisResult, results []driver.PublishResult) (failed bool) {
	chunk := a.messages[a.next : a.next+a.sent]
	a.next += a.sent
	added, err := 0, result.Error()
	state := driver.NotStored
	if err == nil {
		var answer []rueidis.RedisMessage
		if answer, err = result.ToArray(); err == nil && len(answer) == 2 {
			count, _ := answer[0].AsInt64()
			added = int(count)
			if refusal, _ := answer[1].ToString(); refusal != "" {
				err = errors.New(refusal)
			}
		}
	} else if !wire.Refused(err) {
		state = driver.Unknown
	}
	for n, index := range chunk {
		if n < added {
			results[index].State = driver.Stored
			continue
		}
		if err == nil {
			err = errUnexpected
		}
		results[index] = driver.PublishResult{State: state, Err: fmt.Errorf("streams: append to %s: %w", a.stream, err)}
	}
	if err == nil {
		return false
	}
	for _, index := range a.messages[a.next:] {
		results[index].Err = fmt.Errorf("streams: append to %s: not sent because an earlier message was not stored: %w", a.stream, err)
	}
	a.next = len(a.messages)
	return true
}

func messageSize(m *driver.Message) int {
	size := len(m.Key) + len(m.Body)
	for _, h := range m.Headers {
		size += len(h.Name) + len(h.Value)
	}
	return size
}

// PutDeadLetter implements [driver.DeadLetters]: it appends the raw body with the
// original fields, and what went wrong in further ones, to
// [Driver.DeadLetterName]. That stream is never trimmed.
func (d *Driver) PutDeadLetter(ctx context.Context, letter driver.DeadLetter) error {
	if !d.calls.Enter() {
		return errClosed
	}
	defer d.calls.Leave()
	stream := d.DeadLetterName(letter.Channel, letter.Subscription)
	if err := wire.PutDeadLetter(ctx, d.client, stream, &letter, 0); err != nil {
		return fmt.Errorf("streams: subscription %s: dead letter %s to %s: %w", letter.Subscription, letter.ID, stream, err)
	}
	return nil
}
