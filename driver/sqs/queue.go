package sqs

import (
	"cmp"
	"context"
	"fmt"
	"strconv"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/aws-sdk-go-v2/service/sqs/types"

	"github.com/tidings-go/tidings/driver"
)

// queue is one queue that is read, for all subscriptions of this driver on it.
type queue struct {
	driver  *Driver
	url     string
	name    string
	channel string // "" on a queue of the caller's own, which may have several

	polls    sync.WaitGroup
	beats    sync.WaitGroup
	life     context.Context // ends when its last consumer closes
	end      context.CancelFunc
	wake     chan struct{}   // there may be room
	more     chan struct{}   // a receive was full: helpers have something to do
	quit     chan struct{}   // closed by stop
	last     context.Context // of polls: ends some time after stop
	endPolls context.CancelFunc

	mu        sync.Mutex
	consumers []*consumer
	running   int
	polling   bool
	stopping  bool // nothing more is asked for
	asking    int  // messages that polls under way may bring
	held      map[string]*held
	bytes     int
	full      bool
	finished  map[string]map[string]bool // of messages that were given back: which subscriptions had finished
	told      map[string]bool            // types that nobody handles, which were reported
	records   map[*consumer]record
}

// held is a message in hand.
type held struct {
	queue   *queue
	id      string
	size    int
	since   time.Time // of this receive
	receipt string    // the newest; this and the rest are guarded by the queue's lock
	until   time.Time // when it becomes visible unless that is extended
	parts   []*part
	left    int // parts that are not settled
	after   time.Duration
	back    bool // some part gave it back
	gone    bool
}

// part is the handle of a message in the hand of one subscription.
type part struct {
	*held
	consumer *consumer
	settled  bool
	finished bool
}

// Position implements [driver.Ref].
func (p *part) Position() string { return p.queue.name + "/" + p.id }

func newQueue(d *Driver, url, channel string) *queue {
	q := &queue{
		driver: d, url: url, name: nameOf(url), channel: channel, wake: make(chan struct{}, 1),
		more: make(chan struct{}, d.options.Pollers), quit: make(chan struct{}),
		held: make(map[string]*held), records: make(map[*consumer]record), finished: make(map[string]map[string]bool), told: make(map[string]bool),
	}
	q.life, q.end = context.WithCancel(context.Background())
	q.last, q.endPolls = context.WithCancel(context.Background())
	return q
}

// start begins to poll when every subscription on the queue runs: a message is for
// all of them.
func (q *queue) start() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.running++
	if q.running < len(q.consumers) || q.polling || q.stopping {
		return
	}
	q.polling = true
	q.polls.Go(q.poll)
	for range q.driver.options.Pollers - 1 {
		q.polls.Go(q.help)
	}
	q.beats.Go(q.beat)
}

// stop asks for nothing more. Polls under way finish; one that gets no answer a
// moment after its wait is given up.
func (q *queue) stop() {
	q.mu.Lock()
	defer q.mu.Unlock()
	if !q.stopping {
		q.stopping = true
		close(q.quit)
		time.AfterFunc(q.driver.options.PollWait+lateAnswer, q.endPolls)
	}
}

// lateAnswer is how much longer than its wait the last poll may take.
const lateAnswer = time.Second

// roomy wakes the poller when there may be room.
func (q *queue) roomy() {
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

// pause waits until there may be room, for d at most.
func (q *queue) pause(d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-q.wake:
	case <-timer.C:
	case <-q.quit:
	}
}

// poll waits for messages until the queue stops.
func (q *queue) poll() {
	failures := 0
	for {
		room, stopping := q.room()
		if stopping {
			return
		}
		if room == 0 {
			q.pause(time.Second)
			continue
		}
		if q.unable() {
			q.mu.Lock()
			q.asking -= room
			q.mu.Unlock()
			q.pause(time.Second)
			continue
		}
		if _, err := q.fetch(room, q.driver.options.PollWait); err != nil {
			q.failed(fmt.Errorf("sqs: receive from %s: %w", q.name, err))
			q.pause(min(100*time.Millisecond<<min(failures, 10), 5*time.Second))
			failures++
			continue
		}
		failures = 0
		for _, c := range q.members() {
			c.outage.Answered()
		}
	}
}

// unable reports that a subscription on the queue has not been able to handle anything
// for longer than a message is invisible: messages are for all of them, so other
// instances get them.
func (q *queue) unable() bool {
	for _, c := range q.members() {
		if c.subscription.IsUnable(q.driver.options.VisibilityTimeout) {
			return true
		}
	}
	return false
}

// help receives while there are many messages, until the queue stops.
func (q *queue) help() {
	for {
		select {
		case <-q.more:
		case <-q.quit:
			return
		}
		for full := true; full; {
			room, stopping := q.room()
			if stopping || room == 0 {
				break
			}
			full, _ = q.fetch(room, 0) // the poller meets the same failure and reports it
		}
	}
}

// fetch receives once and hands over what came. It reports whether it was as much
// as a receive can bring.
func (q *queue) fetch(room int, wait time.Duration) (full bool, err error) {
	got, err := q.receive(room, wait)
	q.mu.Lock()
	q.asking -= room
	q.mu.Unlock()
	if err != nil {
		return false, err
	}
	if full = len(got) == batchSize; full {
		for range cap(q.more) {
			select {
			case q.more <- struct{}{}:
			default:
			}
		}
	}
	q.take(got)
	return full, nil
}

// room reserves room for a receive.
func (q *queue) room() (room int, stopping bool) {
	o := &q.driver.options
	q.mu.Lock()
	maxEvents, maxBytes := o.MaxEvents, o.MaxBytes
	for _, c := range q.consumers {
		if c.subscription.MaxEvents > 0 {
			maxEvents = min(maxEvents, c.subscription.MaxEvents)
		}
		if c.subscription.MaxBytes > 0 {
			maxBytes = min(maxBytes, c.subscription.MaxBytes)
		}
	}
	count := len(q.held) + q.asking
	resumed := q.full && count <= maxEvents/2 && q.bytes <= maxBytes/2
	if resumed {
		q.full = false
	}
	full := !q.full && (count >= maxEvents || q.bytes >= maxBytes)
	q.full = q.full || full && q.asking == 0
	if !q.full && !full && !q.stopping {
		room = min(batchSize, maxEvents-count)
		q.asking += room
	}
	stopping = q.stopping
	full = full && q.full
	held := len(q.held)
	q.mu.Unlock()
	if resumed || full {
		report := driver.Report{Kind: driver.ReportResumed}
		if full {
			report = driver.Report{Kind: driver.ReportPaused, Count: held, Text: "as many messages as may be are received from " + q.name + " and not finished: no more are until some are"}
		}
		for _, c := range q.members() {
			c.sink.Report(report)
		}
	}
	return room, stopping
}

// receive asks for messages. It is not cancelled while an answer may come: the
// messages of a poll that is would be lost for a visibility timeout.
func (q *queue) receive(room int, wait time.Duration) ([]types.Message, error) {
	out, err := q.driver.options.Client.ReceiveMessage(q.last, &sqs.ReceiveMessageInput{
		QueueUrl: &q.url, MaxNumberOfMessages: int32(room), WaitTimeSeconds: int32(wait / time.Second),
		VisibilityTimeout: int32(q.driver.options.VisibilityTimeout / time.Second), MessageAttributeNames: []string{"All"},
		MessageSystemAttributeNames: []types.MessageSystemAttributeName{types.MessageSystemAttributeNameSentTimestamp, types.MessageSystemAttributeNameApproximateReceiveCount, types.MessageSystemAttributeNameMessageGroupId},
	}, q.driver.poll)
	if err != nil {
		return nil, err
	}
	return out.Messages, nil
}

func (q *queue) members() []*consumer {
	q.mu.Lock()
	defer q.mu.Unlock()
	return append([]*consumer(nil), q.consumers...)
}

func (q *queue) failed(err error) {
	for _, c := range q.members() {
		c.outage.Failed(err)
	}
}

// take hands received messages to their subscriptions, in order.
func (q *queue) take(messages []types.Message) {
	read := make([]incoming, len(messages))
	for n := range messages {
		read[n] = parse(&messages[n])
	}
	t := taking{queue: q, now: time.Now(), known: q.consult(read), deliveries: make(map[*consumer][]driver.Delivery), behind: make(map[string]time.Duration)}
	q.mu.Lock()
	for n := range messages {
		t.take(&messages[n], &read[n])
	}
	members := append([]*consumer(nil), q.consumers...)
	q.mu.Unlock()
	for _, c := range t.order { // a group's next message is received when this one is settled
		c.delivering.Lock()
		c.sink.Deliver(context.Background(), t.deliveries[c])
		c.delivering.Unlock()
	}
	for _, eventType := range t.unhandled {
		for _, c := range members {
			c.sink.Report(driver.Report{Kind: driver.ReportIgnored, Count: 1,
				Text: fmt.Sprintf("queue %s has events of type %q, which no release of a subscription here handles: they are given back for %v, in case a newer instance does", q.name, eventType, q.driver.options.UnhandledGrace)})
		}
	}
	if len(t.back) > 0 {
		if err := q.apply(context.Background(), t.back); err != nil {
			q.failed(err)
		}
	}
}

// taking is what becomes of the messages of one receive. The queue's lock is held while
// messages are taken.
type taking struct {
	queue      *queue
	now        time.Time
	known      bool // the record says which types only other releases handle
	back       []change
	behind     map[string]time.Duration // groups of which a message went back: the rest follows
	deliveries map[*consumer][]driver.Delivery
	order      []*consumer
	unhandled  []string
}

// unknownWait is how long a message goes back while the record does not answer.
const unknownWait = 5 * time.Second

func (t *taking) take(m *types.Message, in *incoming) {
	q := t.queue
	h := &held{queue: q, id: aws.ToString(m.MessageId), receipt: aws.ToString(m.ReceiptHandle), size: len(in.body), since: t.now, until: t.now.Add(q.driver.options.VisibilityTimeout)}
	for _, header := range in.headers {
		h.size += len(header.Name) + len(header.Value)
	}
	if known := q.held[h.id]; known != nil { // its visibility ended, and it is in hand
		known.receipt, known.until, known.since = h.receipt, h.until, h.since
		return
	}
	if q.stopping {
		t.back = append(t.back, change{h, 0})
		return
	}
	group := m.Attributes["MessageGroupId"]
	if wait, after := t.behind[group]; after && group != "" {
		t.back = append(t.back, change{h, wait})
		return
	}
	sent := milliseconds(m.Attributes["SentTimestamp"])
	targets, giveUp := q.targets(in.eventType, h.id)
	if giveUp {
		wait := min(q.driver.options.UnhandledGrace-t.now.Sub(sent), 15*time.Second)
		if !t.known {
			wait = unknownWait
		}
		if wait > 0 {
			t.back = append(t.back, change{h, wait})
			t.behind[group] = wait
			if t.known && !q.told[in.eventType] {
				q.told[in.eventType] = true
				t.unhandled = append(t.unhandled, in.eventType)
			}
			return
		}
	}
	received, err := strconv.Atoi(m.Attributes["ApproximateReceiveCount"])
	if err != nil {
		received = 1
	}
	for _, c := range targets {
		p := &part{held: h, consumer: c}
		h.parts = append(h.parts, p)
		delivery := driver.Delivery{
			Message: driver.Message{Channel: q.channel, Key: group, Headers: in.headers, Body: in.body, Size: h.size},
			Ref:     p, Time: sent, Attempt: received,
		}
		if q.channel == "" {
			delivery.Channel = cmp.Or(q.records[c].lacks[in.eventType], c.subscription.ChannelOf(in.eventType))
		}
		if giveUp && q.channel == "" {
			delivery.GiveUp = unhandledReason
		}
		if t.deliveries[c] == nil {
			t.order = append(t.order, c)
		}
		t.deliveries[c] = append(t.deliveries[c], delivery)
	}
	h.left = len(h.parts)
	if h.left == 0 { // everybody had finished it before it was given back
		t.back = append(t.back, change{h, deleted})
		return
	}
	q.held[h.id] = h
	q.bytes += h.size
}

// unhandledReason is the reason of a dead letter of a type that nobody handles.
const unhandledReason = "unhandled"

// targets are the subscriptions that get a message: those that handle its type, and
// those of which another release does, which leave it to that. The second result says
// that there are none. The caller holds the lock.
func (q *queue) targets(eventType, id string) (targets []*consumer, unhandled bool) {
	finished := q.finished[id]
	known := false
	for _, c := range q.consumers {
		handles := eventType == "" || c.handles[eventType] || q.records[c].lacks[eventType] != ""
		known = known || handles
		if handles && !finished[c.subscription.Name] {
			targets = append(targets, c)
		}
	}
	if known || len(q.consumers) == 0 {
		return targets, false
	}
	return q.consumers[:1], true
}

func milliseconds(text string) time.Time {
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		return time.Time{}
	}
	return time.UnixMilli(n).UTC()
}

// beat extends the visibility of everything in hand until the queue ends.
func (q *queue) beat() {
	timeout := q.driver.options.VisibilityTimeout
	ticker := time.NewTicker(timeout / 3)
	defer ticker.Stop()
	for {
		select {
		case <-q.life.Done():
			return
		case <-ticker.C:
		}
		if q.unable() {
			continue // what is in hand is given to others
		}
		now := time.Now()
		var extend []change
		q.mu.Lock()
		for _, h := range q.held {
			if left := longest - now.Sub(h.since); !h.gone && h.until.Sub(now) < timeout*3/4 && left > time.Second {
				extend = append(extend, change{h, min(timeout, left)})
			}
		}
		q.mu.Unlock()
		if err := q.apply(q.life, extend); err != nil && q.life.Err() == nil {
			q.failed(err)
		}
	}
}
