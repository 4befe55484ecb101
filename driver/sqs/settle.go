package sqs

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/aws-sdk-go-v2/service/sqs/types"

	"github.com/tidings-go/tidings/driver"
)

// change is what is to become of a message: it is visible after a time, or
// deleted.
type change struct {
	*held
	after time.Duration
}

// deleted is the time of a change that deletes.
const deleted = time.Duration(-1)

// settleRequests is how many batches of one call are on their way at once.
const settleRequests = 4

// apply tells SQS, in batches of ten. What SQS refuses by itself, because the
// message is not this driver's any more, is no error.
func (q *queue) apply(ctx context.Context, changes []change) error {
	var batches [][]change
	for _, group := range [][]change{
		slices.Collect(filter(changes, func(c change) bool { return c.after == deleted })),
		slices.Collect(filter(changes, func(c change) bool { return c.after != deleted })),
	} {
		batches = append(batches, slices.Collect(slices.Chunk(group, batchSize))...)
	}
	var wait sync.WaitGroup
	turns := make(chan struct{}, settleRequests)
	failures := make([]error, len(batches))
	for n, batch := range batches {
		turns <- struct{}{}
		wait.Go(func() {
			defer func() { <-turns }()
			failures[n] = q.request(ctx, batch)
		})
	}
	wait.Wait()
	return errors.Join(failures...)
}

func filter(changes []change, keep func(change) bool) func(yield func(change) bool) {
	return func(yield func(change) bool) {
		for _, c := range changes {
			if keep(c) && !yield(c) {
				return
			}
		}
	}
}

// request sends one batch, all deletions or all times.
func (q *queue) request(ctx context.Context, batch []change) error {
	receipts := make([]string, len(batch))
	q.mu.Lock()
	for n, c := range batch {
		receipts[n] = c.receipt
	}
	q.mu.Unlock()
	began := time.Now()
	var failed []types.BatchResultErrorEntry
	if batch[0].after == deleted {
		in := &sqs.DeleteMessageBatchInput{QueueUrl: &q.url}
		for n := range batch {
			in.Entries = append(in.Entries, types.DeleteMessageBatchRequestEntry{Id: aws.String(strconv.Itoa(n)), ReceiptHandle: &receipts[n]})
		}
		out, err := q.driver.options.Client.DeleteMessageBatch(ctx, in)
		if err != nil {
			return fmt.Errorf("sqs: delete from %s: %w", q.name, err)
		}
		failed = out.Failed
	} else {
		in := &sqs.ChangeMessageVisibilityBatchInput{QueueUrl: &q.url}
		for n, c := range batch {
			in.Entries = append(in.Entries, types.ChangeMessageVisibilityBatchRequestEntry{
				Id: aws.String(strconv.Itoa(n)), ReceiptHandle: &receipts[n], VisibilityTimeout: int32((c.after + time.Second - 1) / time.Second),
			})
		}
		out, err := q.driver.options.Client.ChangeMessageVisibilityBatch(ctx, in)
		if err != nil {
			return fmt.Errorf("sqs: visibility on %s: %w", q.name, err)
		}
		failed = out.Failed
	}
	refused := make(map[int]bool)
	var errs []error
	for _, f := range failed {
		n, err := strconv.Atoi(aws.ToString(f.Id))
		if err != nil || n < 0 || n >= len(batch) {
			continue
		}
		refused[n] = true
		// The sender's fault is a receipt that is over: the message is another's
		// by now. Anything else is asked again.
		if !f.SenderFault {
			errs = append(errs, fmt.Errorf("sqs: message %s on %s: %s: %s", batch[n].id, q.name, aws.ToString(f.Code), aws.ToString(f.Message)))
		}
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	for n, c := range batch {
		if !refused[n] && c.after != deleted {
			c.until = began.Add(c.after)
		}
	}
	return errors.Join(errs...)
}

// Settle implements [driver.Consumer]. A message is deleted when every subscription
// on its queue has finished it; when one gave it back it becomes visible after the
// time that this one said, once the others are done.
func (c *consumer) Settle(ctx context.Context, settlements []driver.Settlement) error {
	c.pace(ctx, len(settlements))
	byQueue := make(map[*queue][]change)
	var order []*queue
	for _, settled := range settlements {
		p, ok := settled.Ref.(*part)
		if !ok || p.consumer != c {
			continue
		}
		q := p.queue
		q.mu.Lock()
		p.settle(settled.Outcome, settled.After)
		if p.left == 0 && !p.gone {
			if byQueue[q] == nil {
				order = append(order, q)
			}
			byQueue[q] = append(byQueue[q], p.change())
		}
		q.mu.Unlock()
	}
	var errs []error
	for _, q := range order {
		if err := q.apply(ctx, byQueue[q]); err != nil {
			errs = append(errs, err)
			continue
		}
		q.mu.Lock()
		for _, changed := range byQueue[q] {
			changed.done()
		}
		q.mu.Unlock()
		q.roomy()
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("sqs: subscription %s: %w", c.subscription.Name, err)
	}
	return nil
}

// paced is the least time between two calls that do not fill a batch.
const paced = 10 * time.Millisecond

// pace waits a moment where little is to be settled soon after the last call: more
// comes meanwhile, and a request takes ten.
func (c *consumer) pace(ctx context.Context, count int) {
	if left := paced - time.Since(c.settledAt); count < batchSize && left > 0 && c.life.Err() == nil {
		timer := time.NewTimer(left)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-ctx.Done():
		case <-c.life.Done():
		}
	}
	c.settledAt = time.Now()
}

// settle marks a part. The caller holds the queue's lock.
func (p *part) settle(outcome driver.Outcome, after time.Duration) {
	if p.settled {
		return
	}
	p.settled = true
	p.left--
	p.finished = outcome == driver.Finished
	if !p.finished {
		p.after = max(p.after, after)
		p.back = true
	}
}

// change is what becomes of a message that nobody holds any more. The caller holds
// the queue's lock.
func (h *held) change() change {
	if !h.back {
		return change{h, deleted}
	}
	return change{h, max(0, min(h.after, longest-time.Since(h.since)-time.Second))}
}

// rememberedMessages bounds what is known of messages that were given back.
const rememberedMessages = 10_000

// done forgets a message that was deleted or given back. The caller holds the
// queue's lock.
func (h *held) done() {
	if h.gone {
		return
	}
	q := h.queue
	h.gone = true
	delete(q.held, h.id)
	q.bytes -= h.size
	delete(q.finished, h.id)
	if !h.back || len(h.parts) < 2 {
		return
	}
	finished := make(map[string]bool)
	for _, p := range h.parts {
		if p.finished {
			finished[p.consumer.subscription.Name] = true
		}
	}
	if len(finished) > 0 && len(q.finished) < rememberedMessages {
		q.finished[h.id] = finished
	}
}
