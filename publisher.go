package tidings

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/tidings-go/tidings/codec"
	"github.com/tidings-go/tidings/driver"
)

// Publisher takes events. The bus, a module's face, the outbox inside a
// transaction and a test's recorder all implement it, so code that publishes
// depends on nothing more. It may be used from any goroutine.
type Publisher interface {
	// Publish stores the events and returns nil when all are stored; what
	// "stored" is worth says the comment of each implementation. Events of one
	// aggregate in one call keep their order, and a failure of one fails those
	// after it.
	//
	// Otherwise the error is a *[PublishError] with a result per event: any
	// subset may be stored, and publishing the same event values again is safe.
	// Sizes and encodings are checked for all events before the first is sent.
	Publish(ctx context.Context, events ...DomainEvent) error
}

var (
	_ Publisher = (*Bus)(nil)
	_ Publisher = (*Module)(nil)
)

// Publish stores events of any module. Returning nil means that the driver has
// stored them: on a broker, as durably as its page says; in memory, that they
// are queued or handled in this process and lost with it.
//
// The errors that a *[PublishError] wraps are, besides the driver's own,
// [ErrClosed], [ErrFull], [ErrTooLarge] and the context's. On the in-memory
// driver a handler's error is never Publish's: it is retried.
//
// A module publishes through [Module.Publish], which refuses what the module
// does not own.
func (b *Bus) Publish(ctx context.Context, events ...DomainEvent) error {
	return b.publish(ctx, nil, events)
}

// Publish stores events that this module owns. An event of another module is an
// error that wraps [ErrForeignEvent] and names its owner; then nothing of the
// call is stored. With [Options].RequireOutbox it is [ErrOutboxRequired]. For the
// rest see [Bus.Publish].
func (m *Module) Publish(ctx context.Context, events ...DomainEvent) error {
	if m.bus.options.RequireOutbox && len(events) > 0 {
		return m.bus.publishFailed(ctx, events, fmt.Errorf("module %s: %w: use Module.Through with the outbox in your transaction", m.name, ErrOutboxRequired))
	}
	return m.bus.publish(ctx, m, events)
}

// Encode turns events into what a driver stores: it checks them, takes
// correlation and causation ids from a handler's context, asks the observers
// for trace context, and applies codec and size limit. It is for publishers
// that store events elsewhere first, such as an outbox. Every message has a
// body, also on a driver that passes values. The error is a *[PublishError].
func (b *Bus) Encode(ctx context.Context, events ...DomainEvent) ([]driver.Message, error) {
	messages := make([]driver.Message, len(events))
	_, _, end, err := b.encode(ctx, nil, events, messages, false)
	if end != nil {
		end(err)
	}
	if err != nil {
		return nil, err
	}
	return messages, nil
}

func (b *Bus) publish(ctx context.Context, from *Module, events []DomainEvent) error {
	if len(events) == 0 {
		return nil
	}
	if b.driver == nil {
		return b.publishFailed(ctx, events, errors.New("New was given no driver"))
	}
	if !b.features.Durable {
		b.publishing.Add(1)
		defer b.publishing.Add(-1)
	}
	// What is published while a driver without durability drains would be lost,
	// but for what the handlers publish that the drain waits for.
	if b.closed.Load() || b.draining.Load() && !driver.InHandler(ctx) {
		return b.publishFailed(ctx, events, ErrClosed)
	}
	if err := ctx.Err(); err != nil {
		return b.publishFailed(ctx, events, err)
	}
	space := b.messages.Get().(*[]driver.Message)
	if len(*space) < len(events) {
		*space = make([]driver.Message, len(events))
	}
	messages := (*space)[:len(events)]
	defer func() {
		clear(messages)
		b.messages.Put(space)
	}()
	ctx, events, end, err := b.encode(ctx, from, events, messages, b.features.Values)
	if err == nil {
		err = b.store(ctx, events, messages)
	}
	if end != nil {
		end(err)
	}
	if err != nil {
		return b.observeFailure(ctx, err)
	}
	if b.observers.wants(Published) {
		for _, e := range events {
			b.observers.observe(ctx, publication(e, Published, nil))
		}
	}
	return nil
}

// store gives the messages to the driver and, on a driver that runs handlers
// in the publisher's goroutine, runs what came of them.
func (b *Bus) store(ctx context.Context, events []DomainEvent, messages []driver.Message) error {
	var t *tree
	if b.direct != nil && b.direct.RunInPublish() {
		if outer := treeFrom(ctx); (outer == nil || !outer.open()) && attemptFrom(ctx) == nil {
			t = b.newTree(ctx)
			ctx = t
			defer b.drainTree(t)
		}
	}
	err := b.driver.Publish(ctx, messages)
	if err == nil {
		return nil
	}
	failed := &PublishError{Results: make([]PublishResult, len(events))}
	details, ok := errors.AsType[*driver.PublishError](err)
	for n := range events {
		failed.Results[n] = PublishResult{Event: events[n], State: NotStored, Err: err}
		if ok && n < len(details.Results) {
			failed.Results[n].State, failed.Results[n].Err = details.Results[n].State, details.Results[n].Err
		}
	}
	return failed
}

func (b *Bus) publishFailed(ctx context.Context, events []DomainEvent, cause error) error {
	failed := &PublishError{Results: make([]PublishResult, len(events))}
	for n, e := range events {
		failed.Results[n] = PublishResult{Event: e, State: NotStored, Err: cause}
	}
	return b.observeFailure(ctx, failed)
}

func (b *Bus) observeFailure(ctx context.Context, err error) error {
	if failed, ok := errors.AsType[*PublishError](err); ok {
		for _, r := range failed.Results {
			if r.State == Stored {
				b.observers.observe(ctx, publication(r.Event, Published, nil))
			} else {
				b.observers.observe(ctx, publication(r.Event, PublishFailed, r.Err))
			}
		}
	}
	return err
}

// recordOf returns what an event holds, or nil: also for a type that embeds the
// interface with nothing in it.
func recordOf(e DomainEvent) (r record) {
	if e == nil {
		return nil
	}
	defer func() {
		if recover() != nil {
			r = nil
		}
	}()
	return e.record()
}

func publication(e DomainEvent, kind Kind, err error) Observation {
	o := Observation{Kind: kind, Err: err}
	if recordOf(e) == nil {
		return o
	}
	h := e.record().head()
	o.ID, o.AggregateID, o.CorrelationID, o.CausationID = h.id, h.aggregateID, h.correlationID, h.causationID
	if d := h.definition; d != nil {
		o.Type, o.Channel, o.Version = d.eventType, d.channel, d.version
	}
	return o
}

// encode fills messages from events. It returns the events as they are published
// (with the causation of a handler's context); the function ends the observation
// of the publish, also after an error; the context is the observers'.
func (b *Bus) encode(ctx context.Context, from *Module, events []DomainEvent, messages []driver.Message, values bool) (context.Context, []DomainEvent, func(error), error) {
	var cause *header
	if a := attemptFrom(ctx); a != nil {
		cause = a.item.header
		events = slices.Clone(events) // the caller's are not ours to change
	}
	var errs []error // per event, made at the first problem
	refuse := func(n int, err error) {
		if errs == nil {
			errs = make([]error, len(events))
		}
		errs[n] = err
	}
	records := messages // Value holds each event's record until it is encoded
	for n, e := range events {
		if recordOf(e) == nil {
			refuse(n, errors.New("the event is empty: make it with Contract.New"))
			continue
		}
		r := e.record()
		h := r.head()
		if err := h.invalid(); err != nil {
			refuse(n, err)
			continue
		}
		if err := b.check(from, h.definition); err != nil {
			refuse(n, err)
			continue
		}
		size, err := r.inspect()
		if err != nil {
			refuse(n, fmt.Errorf("the payload cannot be published: %w", err))
			continue
		}
		if cause != nil && h.causationID == "" {
			changed := *h
			changed.cause(cause)
			r = r.with(changed)
			h = r.head()
			events[n] = r.event()
		}
		if values {
			r = r.detach() // the publisher keeps the original
		}
		records[n].Value = r
		m := &messages[n]
		m.Channel, m.Type, m.Key, m.ID = h.definition.channel, h.definition.eventType, h.aggregateID, h.id
		m.Size = size + len(h.id) + len(h.aggregateID) + messageOverhead
	}
	var end func(error)
	var headers []driver.Headers
	if len(b.observers.publish) > 0 && errs == nil {
		ctx, end, headers = b.observePublish(ctx, events)
	}
	for n := range messages {
		if errs != nil {
			break
		}
		m := &messages[n]
		if headers != nil {
			m.Headers = headers[n]
		}
		if values {
			continue
		}
		if err := b.encodeOne(m); err != nil {
			refuse(n, err)
		}
	}
	if errs == nil {
		return ctx, events, end, nil
	}
	failed := &PublishError{Results: make([]PublishResult, len(events))}
	for n, e := range events {
		failed.Results[n] = PublishResult{Event: e, State: NotStored, Err: errs[n]}
		if errs[n] == nil {
			failed.Results[n].Err = errOthersInvalid
		}
	}
	return ctx, events, end, failed
}

var errOthersInvalid = errors.New("another event of the same call was refused before anything was sent")

// messageOverhead is about what an event costs in memory besides its payload
// and ids, in bytes.
const messageOverhead = 256

func (b *Bus) encodeOne(m *driver.Message) error {
	r := m.Value.(record)
	m.Value = nil
	h := r.head()
	payload, err := r.marshal()
	if err != nil {
		return fmt.Errorf("encode the payload: %w", err)
	}
	source := h.origin
	if source == "" {
		source = b.options.Source
	}
	e := codec.Envelope{
		ID: h.id, AggregateID: h.aggregateID, Type: h.definition.eventType,
		Version: h.definition.version, ReadableFrom: h.definition.readableFrom,
		OccurredAt: h.occurredAt, CorrelationID: h.correlationID, CausationID: h.causationID, Source: source,
		Traceparent: m.Headers.Get(driver.HeaderTraceparent), Tracestate: m.Headers.Get(driver.HeaderTracestate),
		Payload: payload,
	}
	body, headers, err := b.options.Codec.Encode(&e, b.features)
	if err != nil {
		return fmt.Errorf("encode: %w", err)
	}
	if b.features.Headers {
		most := codec.MaxHeaders // no reader takes more
		if b.features.MaxHeaders > 0 {
			most = min(most, b.features.MaxHeaders)
		}
		for _, extra := range m.Headers {
			if headers.Get(extra.Name) == "" && len(headers) < most {
				headers = append(headers, extra)
			}
		}
	}
	m.Headers, m.Body = headers, body
	m.Size = len(m.Key) + len(body)
	for _, header := range headers {
		m.Size += len(header.Name) + len(header.Value)
	}
	if b.features.MaxSize > 0 && m.Size > b.features.MaxSize {
		return fmt.Errorf("%w: %d bytes with key and headers, driver %s takes %d", ErrTooLarge, m.Size, b.driver.Name(), b.features.MaxSize)
	}
	return nil
}

func (b *Bus) observePublish(ctx context.Context, events []DomainEvent) (context.Context, func(error), []driver.Headers) {
	p := &Publication{Events: events}
	ctx, ends := b.observers.beginPublish(ctx, p)
	return ctx, ends.end, p.headers
}
