package tidings

import (
	"cmp"
	"context"
	"fmt"
	"hash/fnv"
	"runtime/debug"
	"slices"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/google/uuid"

	"github.com/tidings-go/tidings/codec"
	"github.com/tidings-go/tidings/driver"
)

// stage is what an item needs next; see docs/design.md for the drawing.
type stage uint8

const (
	stageHandle   stage = iota // claim it, call the handler
	stageFinish                // handled: the claim is still to be marked done
	stageDead                  // given up: the dead letter is still to be stored
	stageAnnounce              // and it is still to be said that it was
	stagePark                  // to be put into the store of parked events
	stageHeld                  // this handler cannot read it: wait for one that can
	stageIgnored               // no reaction: finished unseen
	stageUnknown               // no reaction here: whether another release has one is to be asked
	stageResolve               // a dead letter that was handled: the store is still to be told
)

// item is one delivery on its way through the engine. Fields without a word are
// written before the item is queued, or by whoever runs its lane.
type item struct {
	*header
	subscription *subscription
	lane         *lane
	next         *item // in the lane; guarded by the subscription's lock
	source       *source
	letter       *redriven // it was a dead letter
	tree         *tree     // the Publish that will come for it, or nil

	ref      driver.Ref
	channel  string
	headers  driver.Headers
	value    record    // what never left the process, or
	wire     *wireItem // what came from a broker
	size     int
	reaction *Reaction

	version      int
	readableFrom int
	attempts     int
	failure      error
	reason       string
	key          string
	owner        string // of its claim
	fence        int64
	needs        int64 // the first read of the record that decides what has no reaction
	claimEpoch   int64
	hash         uint64

	stage    stage
	claimed  bool
	stored   bool // it came from the store of parked events
	hashed   bool
	finished bool
	running  bool
	probe    bool // the outage guard's

	suspicion *suspicion // it was started before and never finished
	suspected bool       // it is a suspect, or was one
	convicted bool       // it is parked because it ends the process
	anew      bool       // what is counted against it is to be forgotten first
	counted   bool       // Starts has counted this start

	// the list of running items; guarded by the subscription's lock
	runPrev *item
	runNext *item

	attempt      atomic.Pointer[attempt] // the one that runs
	firstAttempt attempt                 // most items need one only
}

// wireItem is what an item has besides when it came from a broker.
type wireItem struct {
	header
	eventType    string
	body         []byte
	payload      []byte // raw JSON
	decoded      record // where it had to be read before it was queued
	storedAt     time.Time
	redeliveries int
}

// newItem reads one delivery as far as its lane and dedup key need it.
func (s *subscription) newItem(d *driver.Delivery) *item {
	i := &item{subscription: s, ref: d.Ref, channel: d.Channel, headers: d.Headers, size: d.Size}
	if d.Value != nil {
		i.adoptValue(d)
		return i
	}
	i.wire = &wireItem{body: d.Body, storedAt: d.Time, redeliveries: d.Attempt}
	i.header = &i.wire.header
	i.adoptEnvelope(d)
	if d.GiveUp != "" && i.stage != stageDead {
		i.stage, i.reason, i.failure = stageDead, d.GiveUp, fmt.Errorf("tidings: driver %s gave it up as %s", s.bus.driver.Name(), d.GiveUp)
	}
	return i
}

// adoptValue takes an event that never left the process.
func (i *item) adoptValue(d *driver.Delivery) {
	r, ok := d.Value.(record)
	if !ok {
		i.header = &header{}
		i.undecodable(fmt.Errorf("tidings: the driver delivered a %T", d.Value))
		return
	}
	i.value, i.header = r, r.head()
	i.version, i.readableFrom = i.definition.version, i.definition.readableFrom
	i.bind()
}

func (i *item) adoptEnvelope(d *driver.Delivery) {
	e, err := codec.Decode(d)
	if err != nil {
		// For the dead letter: what it says of itself outside the body, as far as
		// every store takes it. A letter that no store takes would hold its lane.
		fit := func(text string) string {
			if idProblem(text) != "" {
				return ""
			}
			return text
		}
		i.wire.eventType = cmp.Or(fit(d.Headers.Get(driver.HeaderEventType)), fit(d.Headers.Get("ce_type")), d.Type)
		i.id = cmp.Or(fit(d.Headers.Get(driver.HeaderEventID)), fit(d.Headers.Get("ce_id")), d.Ref.Position())
		i.aggregateID = fit(d.Headers.Get(driver.HeaderAggregateID))
		if i.id == "" {
			i.id = i.subscription.bus.instance + strconv.FormatInt(i.subscription.bus.owners.Add(1), 36)
		}
		i.undecodable(err)
		return
	}
	i.wire.eventType = e.Type
	i.id = e.ID
	i.aggregateID = e.AggregateID
	i.occurredAt = e.OccurredAt
	i.correlationID, i.causationID, i.origin = e.CorrelationID, e.CausationID, e.Source
	i.version, i.readableFrom = e.Version, e.ReadableFrom
	i.wire.payload = e.Payload
	if e.Traceparent != "" && i.headers.Get(driver.HeaderTraceparent) == "" {
		// The broker has no headers; observers find it in one place all the same.
		i.headers = append(slices.Clone(i.headers), driver.Header{Name: driver.HeaderTraceparent, Value: e.Traceparent})
		i.headers.Set(driver.HeaderTracestate, e.Tracestate)
	}
	if i.occurredAt.IsZero() { // pub/sub without a header: now is when it was heard of
		i.occurredAt = wireTime(i.subscription.bus.clock.Now())
	}
	if i.id == "" { // it lies nowhere and has no id: nothing can recognise it again
		if id, err := uuid.NewV7(); err == nil {
			i.id = id.String()
		}
	}
	i.bind()
	if !e.Bare || i.stage != stageHandle {
		return
	}
	contract := i.reaction.definition
	if contract.aggregateFrom == nil {
		return
	}
	r, err := i.read()
	if err == nil {
		i.aggregateID, err = aggregateOf(contract, r)
	}
	if err != nil {
		i.undecodable(err)
		return
	}
	i.wire.decoded = r
}

// aggregateOf asks the contract for the aggregate id of a bare payload; "" is
// none.
func aggregateOf(contract *definition, r record) (id string, err error) {
	defer recoverInto(&err)
	id = contract.aggregateFrom(r.payloadValue())
	if problem := idProblem(id); id != "" && problem != "" {
		return "", fmt.Errorf("the aggregate id that AggregateFrom returns %s", problem)
	}
	return id, nil
}

// recoverInto makes an error of a panic in code that the engine calls outside a
// handler.
func recoverInto(err *error) {
	if value := recover(); value != nil {
		*err = &PanicError{Value: value, Stack: string(debug.Stack())}
	}
}

// eventType is what the event says it is, "" when it cannot be read.
func (i *item) eventType() string {
	if i.wire != nil {
		return i.wire.eventType
	}
	if i.definition != nil {
		return i.definition.eventType
	}
	return ""
}

// bind finds the reaction and what its version makes of the event.
func (i *item) bind() {
	reaction := i.subscription.reactionTo(i.eventType())
	if reaction == nil || reaction.definition.channel != i.channel {
		i.stage = stageIgnored
		if d := &i.subscription.declared; d.keeper != nil {
			i.stage, i.needs = stageUnknown, d.begun.Load()+1
		}
		return
	}
	if reaction.ignored {
		i.stage = stageIgnored
		return
	}
	i.reaction = reaction
	want := reaction.definition
	newer := i.version > want.version && i.readableFrom > want.version
	if newer || i.version < want.version && !want.reads(i.version) {
		i.stage, i.reason = stageHeld, "unreadable"
	}
}

func (i *item) undecodable(err error) {
	i.stage, i.reason, i.failure = stageDead, "undecodable", err
}

// laneKey is the unit of order; an event without an aggregate has a lane of its
// own, in which only its own duplicates are.
func (i *item) laneKey() driver.Lane {
	if i.aggregateID == "" || i.stage == stageDead {
		return driver.Lane{Channel: i.channel, Key: "\x00" + i.id}
	}
	return driver.Lane{Channel: i.channel, Key: i.aggregateID}
}

// read returns the event as the reaction's contract has it, in memory of its
// own.
func (i *item) read() (r record, err error) {
	defer recoverInto(&err) // upcasts and text types are the application's code
	want := i.reaction.definition
	if i.value != nil {
		have := i.definition
		if have == want {
			return i.value.detach(), nil
		}
		raw, err := i.value.marshal()
		if err != nil {
			return nil, err
		}
		return i.decode(want, have.version, have.readableFrom, raw)
	}
	if r := i.wire.decoded; r != nil {
		i.wire.decoded = nil // the next attempt decodes afresh
		*r.head() = i.headerFor(want)
		return r, nil
	}
	return i.decode(want, i.version, i.readableFrom, i.wire.payload)
}

func (i *item) decode(want *definition, version, readableFrom int, raw []byte) (record, error) {
	r, err := want.read(version, readableFrom, raw)
	if err != nil {
		return nil, err
	}
	*r.head() = i.headerFor(want)
	return r, nil
}

func (i *item) headerFor(want *definition) header {
	h := *i.header
	h.definition = want
	return h
}

// dedupKey is aggregate id and event type, and the event id unless the contract
// is Once. Ids have no newline rule, so the lengths make the key unambiguous.
func (i *item) dedupKey() string {
	if i.key != "" {
		return i.key
	}
	switch {
	case i.aggregateID == "":
		i.key = "id:" + i.eventType() + "\n" + i.id
	case i.reaction != nil && i.reaction.definition.occurrence == Once:
		i.key = i.eventType() + "\n" + i.aggregateID
	default:
		i.key = i.eventType() + "\n" + strconv.Itoa(len(i.id)) + "\n" + i.id + i.aggregateID
	}
	return i.key
}

func (i *item) payloadDigest() uint64 {
	if !i.hashed {
		i.hashed = true
		if i.value != nil {
			i.hash = i.value.digest()
		} else {
			h := fnv.New64a()
			_, _ = h.Write(i.wire.payload)
			i.hash = h.Sum64()
		}
	}
	return i.hash
}

func (i *item) claimRequest() driver.ClaimRequest {
	s := i.subscription
	if i.owner == "" {
		// Unique per delivery: a claim of an earlier delivery of the same event
		// to this process is not this one's to give back.
		i.owner = s.bus.instance + strconv.FormatInt(s.bus.owners.Add(1), 36)
	}
	r := driver.ClaimRequest{
		Subscription: s.name,
		Key:          i.dedupKey(),
		Owner:        i.owner,
		Lease:        s.options.ClaimLease,
		Digest:       i.payloadDigest(),
	}
	if i.claimEpoch > 0 {
		r.Source, r.Epoch = i.source.name, i.claimEpoch
	}
	if d := i.reaction.definition; d.occurrence == Once && i.aggregateID != "" {
		r.Keep = d.keep
	} else {
		r.Keep = max(cmp.Or(s.bus.options.RedeliveryHorizon, s.bus.features.RedeliveryHorizon), 0)
	}
	return r
}

// maxFailureText bounds the failure and the stack of a dead letter, in bytes: a letter
// that its store refuses for its size would hold the lane.
const maxFailureText = 64 << 10

func bounded(text string) string {
	if len(text) <= maxFailureText {
		return text
	}
	return trimText(text, maxFailureText) + "…"
}

func (i *item) deadLetter(now time.Time) driver.DeadLetter {
	letter := driver.DeadLetter{
		Subscription: i.subscription.name,
		Channel:      i.channel,
		Type:         i.eventType(),
		ID:           i.id,
		AggregateID:  i.aggregateID,
		Reason:       i.reason,
		Attempts:     i.attempts,
		FailedAt:     now,
		Position:     i.ref.Position(),
		Headers:      i.headers,
	}
	if i.wire != nil {
		letter.Body = i.wire.body
	} else {
		letter.Value = i.value.event()
		letter.Headers, letter.Body = i.encoded()
	}
	if i.failure != nil {
		letter.Err = bounded(i.failure.Error())
		if failed, ok := i.failure.(*failure); ok { //nolint:errorlint // what it wraps is the application's
			letter.Stack = bounded(failed.stack)
		}
	}
	return letter
}

// encoded returns an event that never left the process as the codec writes it, for
// a store that keeps bytes; nothing where there is no such store, or the codec
// cannot.
func (i *item) encoded() (driver.Headers, []byte) {
	b := i.subscription.bus
	if b.options.DeadLetters == nil {
		return i.headers, nil
	}
	m := driver.Message{Key: i.aggregateID, Headers: i.headers, Value: i.value}
	if err := b.encodeOne(&m); err != nil {
		return i.headers, nil
	}
	return m.Headers, m.Body
}

func (i *item) parked(reason string, now time.Time) driver.Parked {
	p := driver.Parked{
		Lane: i.lane.key,
		ID:   i.id,
		Message: driver.Message{
			Channel: i.channel, Type: i.eventType(), Key: i.aggregateID, ID: i.id,
			Headers: i.headers, Size: i.size,
		},
		Source:   i.source.name,
		Position: i.ref.Position(),
		Attempts: i.attempts,
		Reason:   reason,
		ParkedAt: now,
	}
	if i.wire != nil {
		p.Message.Body, p.Time = i.wire.body, i.wire.storedAt
	} else {
		p.Message.Value = i.value
	}
	if i.failure != nil {
		p.Err = i.failure.Error()
	}
	return p
}

func (i *item) observation(kind Kind) Observation {
	return Observation{
		Kind:          kind,
		Subscription:  i.subscription.name,
		Channel:       i.channel,
		Type:          i.eventType(),
		ID:            i.id,
		AggregateID:   i.aggregateID,
		CorrelationID: i.correlationID,
		CausationID:   i.causationID,
		Version:       i.version,
		Source:        i.source.name,
	}
}

// observe tells the observers, unless none of them wants that kind.
func (i *item) observe(ctx context.Context, kind Kind, change func(*Observation)) {
	o := &i.subscription.bus.observers
	if !o.wants(kind) {
		return
	}
	observation := i.observation(kind)
	if change != nil {
		change(&observation)
	}
	o.observe(ctx, observation)
}

// storedRef is the handle of an event that came from the store of parked ones.
type storedRef string

// Position implements [driver.Ref].
func (r storedRef) Position() string { return string(r) }
