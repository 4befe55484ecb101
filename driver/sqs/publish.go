package sqs

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/sns"
	snstypes "github.com/aws/aws-sdk-go-v2/service/sns/types"
	"github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/aws-sdk-go-v2/service/sqs/types"

	"github.com/tidings-go/tidings/driver"
)

const (
	// linger is how long an incomplete batch waits for more, while others are on
	// their way.
	linger = 5 * time.Millisecond
	// maxRequests is how many batches of one queue are on their way at once.
	maxRequests = 16
	// manyRequests on their way hold back a batch that is incomplete.
	manyRequests = 2
	// requestTime bounds one request, its retries included.
	requestTime = 30 * time.Second
)

// Publish implements [driver.Driver]. Messages of concurrent calls go together, in
// batches of ten; of one group of a FIFO queue there is one in a batch, and the
// next is sent when it is stored. A message over the limit is refused before
// anything is sent.
func (d *Driver) Publish(ctx context.Context, messages []driver.Message) error {
	if len(messages) == 0 {
		return nil
	}
	if !d.calls.Enter() {
		return errClosed
	}
	defer d.calls.Leave()
	if ctx.Err() != nil {
		return fmt.Errorf("sqs: nothing was sent: %w", context.Cause(ctx))
	}
	c := &call{results: make([]driver.PublishResult, len(messages)), left: len(messages), done: make(chan struct{})}
	bySender := make(map[*sender][]*outgoing)
	var order []*sender
	for n := range messages {
		m := &messages[n]
		where, err := d.target(ctx, m.Channel, m.Type)
		if err != nil {
			return fmt.Errorf("sqs: %s %s: %w", m.Type, m.ID, err)
		}
		o, err := prepare(m, isFIFO(where.name))
		if err != nil {
			return fmt.Errorf("sqs: %s %s: %w", m.Type, m.ID, err)
		}
		if o.size > where.limit {
			service := "SQS"
			if where.topic != "" {
				service = "SNS"
			}
			return fmt.Errorf("sqs: %s %s: %w: body and attributes have %d bytes, %s takes %d", m.Type, m.ID, driver.ErrTooLarge, o.size, service, where.limit)
		}
		o.call, o.index = c, n
		s := d.sender(where)
		if bySender[s] == nil {
			order = append(order, s)
		}
		bySender[s] = append(bySender[s], o)
	}
	for _, s := range order {
		s.add(bySender[s])
	}
	select {
	case <-c.done:
	case <-ctx.Done():
		for _, s := range order {
			s.withdraw(c, context.Cause(ctx))
		}
		for n := range messages {
			c.decide(n, driver.Unknown, fmt.Errorf("sqs: sent and not confirmed: %w", context.Cause(ctx)))
		}
	}
	return c.outcome()
}

// call is one Publish under way.
type call struct {
	mu      sync.Mutex
	results []driver.PublishResult
	decided []bool
	left    int
	failed  bool
	done    chan struct{}
}

// decide says what became of one message; the first word counts.
func (c *call) decide(index int, state driver.PublishState, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.decided == nil {
		c.decided = make([]bool, len(c.results))
	}
	if c.decided[index] {
		return
	}
	c.decided[index] = true
	c.results[index] = driver.PublishResult{State: state, Err: err}
	c.failed = c.failed || err != nil
	if c.left--; c.left == 0 {
		close(c.done)
	}
}

func (c *call) outcome() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.failed {
		return nil
	}
	return &driver.PublishError{Results: c.results}
}

// sender puts messages for one queue or topic into batches.
type sender struct {
	driver *Driver
	to     *destination
	fifo   bool

	mu       sync.Mutex
	pending  []*outgoing
	busy     map[string]bool // groups that have a message on its way
	requests int
	armed    bool // a timer will send what is there
	due      bool // it has fired: what is there has waited long enough
	several  bool // the last batch had more than one message: more callers are about
}

func (d *Driver) sender(to *destination) *sender {
	d.mu.Lock()
	defer d.mu.Unlock()
	s := d.senders[to.key()]
	if s == nil {
		s = &sender{driver: d, to: to, fifo: isFIFO(to.name), busy: make(map[string]bool)}
		d.senders[to.key()] = s
	}
	return s
}

func (s *sender) add(messages []*outgoing) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pending = append(s.pending, messages...)
	s.pump()
}

// pump sends what may go. An incomplete batch waits for a moment, but for that of a
// caller who is alone. The caller holds the lock.
func (s *sender) pump() {
	for s.requests < maxRequests {
		batch, rest := s.next()
		if len(batch) == 0 {
			return
		}
		waits := (s.requests > 0 || s.several) && !s.due || s.requests >= manyRequests
		if len(batch) < batchSize && waits && !full(batch, s.to.limit) {
			if !s.armed && !s.due {
				s.armed = true
				s.driver.calls.Hold()
				time.AfterFunc(linger, func() {
					defer s.driver.calls.Leave()
					s.mu.Lock()
					defer s.mu.Unlock()
					s.armed, s.due = false, true
					s.pump()
				})
			}
			return
		}
		s.due, s.several = false, len(batch) > 1
		s.pending = rest
		s.requests++
		for _, o := range batch {
			if s.fifo {
				s.busy[o.group] = true
			}
		}
		s.driver.calls.Go(func() { s.send(batch) })
	}
}

func full(batch []*outgoing, limit int) bool {
	size := 0
	for _, o := range batch {
		size += o.size
	}
	return size > limit/2
}

// next chooses a batch: what was waiting longest, within the limits, and of a group
// only what nothing is before. The caller holds the lock.
func (s *sender) next() (batch, rest []*outgoing) {
	size := 0
	var behind map[string]bool // groups that have something before in pending
	for n, o := range s.pending {
		if len(batch) == batchSize {
			return batch, append(rest, s.pending[n:]...)
		}
		if s.fifo && (s.busy[o.group] || behind[o.group]) || size+o.size > s.to.limit {
			rest = append(rest, o)
		} else {
			batch = append(batch, o)
			size += o.size
		}
		if s.fifo {
			if behind == nil {
				behind = make(map[string]bool)
			}
			behind[o.group] = true
		}
	}
	return batch, rest
}

// send sends one batch and says what became of each message. Other calls wait in
// it, so no caller's context ends it.
func (s *sender) send(batch []*outgoing) {
	ctx, cancel := context.WithTimeout(context.Background(), requestTime)
	defer cancel()
	failures, err := s.request(ctx, batch)
	failed := make(map[*call]map[string]error)
	for n, o := range batch {
		state, reason := driver.Stored, failures[n]
		switch {
		case err != nil:
			state, reason = driver.Unknown, err
			if code(err) != "" {
				state = driver.NotStored
			}
		case reason != nil:
			state = driver.NotStored
		}
		if reason != nil {
			reason = fmt.Errorf("sqs: send to %s: %w", s.to.name, reason)
			if s.fifo {
				if failed[o.call] == nil {
					failed[o.call] = make(map[string]error)
				}
				failed[o.call][o.group] = reason
			}
		}
		o.call.decide(o.index, state, reason)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.requests--
	for _, o := range batch {
		delete(s.busy, o.group)
	}
	if len(failed) > 0 {
		s.pending = s.without(func(o *outgoing) bool {
			reason := failed[o.call][o.group]
			if reason != nil {
				o.call.decide(o.index, driver.NotStored, fmt.Errorf("sqs: send to %s: not sent because an earlier message of its group was not stored: %w", s.to.name, reason))
			}
			return reason != nil
		})
	}
	s.pump()
}

// without returns what is pending but for what is taken out. The caller holds the
// lock.
func (s *sender) without(out func(*outgoing) bool) []*outgoing {
	var kept []*outgoing
	for _, o := range s.pending {
		if !out(o) {
			kept = append(kept, o)
		}
	}
	return kept
}

// withdraw takes out what is not sent of a call whose context ended.
func (s *sender) withdraw(c *call, cause error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pending = s.without(func(o *outgoing) bool {
		if o.call == c {
			c.decide(o.index, driver.NotStored, fmt.Errorf("sqs: send to %s: not sent: %w", s.to.name, cause))
		}
		return o.call == c
	})
}

// errEntry is what a batch says of one message.
type errEntry struct{ code, message string }

func (e *errEntry) Error() string { return e.code + ": " + e.message }

// request returns why messages of the batch were refused, by their place in it.
func (s *sender) request(ctx context.Context, batch []*outgoing) (failures map[int]error, err error) {
	failures = make(map[int]error)
	var stored int
	refuse := func(id, code, message *string) {
		if n, err := strconv.Atoi(aws.ToString(id)); err == nil {
			failures[n] = &errEntry{aws.ToString(code), aws.ToString(message)}
		}
	}
	if s.to.topic != "" {
		in := &sns.PublishBatchInput{TopicArn: &s.to.topic}
		for n, o := range batch {
			e := snstypes.PublishBatchRequestEntry{Id: aws.String(strconv.Itoa(n)), Message: &o.body, MessageAttributes: make(map[string]snstypes.MessageAttributeValue)}
			for _, h := range o.attributes {
				e.MessageAttributes[h.Name] = snstypes.MessageAttributeValue{DataType: aws.String(stringType), StringValue: aws.String(h.Value)}
			}
			if s.fifo {
				e.MessageGroupId, e.MessageDeduplicationId = &o.group, &o.duplicate
			}
			in.PublishBatchRequestEntries = append(in.PublishBatchRequestEntries, e)
		}
		out, err := s.driver.options.Topics.PublishBatch(ctx, in)
		if err != nil {
			return nil, err
		}
		for _, f := range out.Failed {
			refuse(f.Id, f.Code, f.Message)
		}
		stored = len(out.Successful)
	} else {
		in := &sqs.SendMessageBatchInput{QueueUrl: &s.to.url}
		for n, o := range batch {
			e := types.SendMessageBatchRequestEntry{Id: aws.String(strconv.Itoa(n)), MessageBody: &o.body, MessageAttributes: attributeValues(o.attributes)}
			if s.fifo {
				e.MessageGroupId, e.MessageDeduplicationId = &o.group, &o.duplicate
			}
			in.Entries = append(in.Entries, e)
		}
		out, err := s.driver.options.Client.SendMessageBatch(ctx, in)
		if err != nil {
			return nil, err
		}
		for _, f := range out.Failed {
			refuse(f.Id, f.Code, f.Message)
		}
		stored = len(out.Successful)
	}
	if stored+len(failures) != len(batch) {
		return nil, fmt.Errorf("%w: %d of %d messages were answered for", errUnanswered, stored+len(failures), len(batch))
	}
	return failures, nil
}

var errUnanswered = errors.New("an incomplete answer")
