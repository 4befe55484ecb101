package kafka

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/tidings-go/tidings/driver"
	"github.com/tidings-go/tidings/internal/window"
)

// accept takes what a poll brought. What does not fit the window waits in the
// backlog, and nothing more is fetched until there is room.
func (p *partition) accept(records []*kgo.Record) {
	p.deliver.Lock()
	defer p.deliver.Unlock()
	p.mu.Lock()
	if p.gone || p.revoking || p.window == nil {
		p.mu.Unlock()
		return
	}
	if len(p.backlog) == 0 {
		p.hand(records)
		return
	}
	p.keep(records)
	paused := p.pauseIfFull(time.Now())
	unfinished := p.window.Length()
	p.mu.Unlock()
	p.reportPaused(paused, unfinished)
}

// keep holds records until there is room. The caller holds mu.
func (p *partition) keep(records []*kgo.Record) {
	if len(p.backlog) == 0 {
		p.since, p.kept = time.Now(), 0
	}
	p.backlog = append(p.backlog, records...)
	for _, r := range records {
		p.kept += recordSize(r)
	}
}

const (
	// pauseAfter is how long a window may be full before fetching pauses: a
	// client that pauses drops what it has fetched, so a moment is waited out.
	pauseAfter = 50 * time.Millisecond
	// maxKept is how much may wait in memory meanwhile, beside the last fetch.
	maxKept = 4 << 20
)

// pauseIfFull stops fetching when records have waited too long or are too many.
// The caller holds mu.
func (p *partition) pauseIfFull(now time.Time) (paused bool) {
	if p.paused || len(p.backlog) == 0 {
		return false
	}
	if now.Sub(p.since) < pauseAfter && p.kept < maxKept && len(p.backlog) < p.consumer.maxEvents {
		return false
	}
	p.paused = true
	p.consumer.client.PauseFetchPartitions(map[string][]int32{p.topic: {p.number}})
	return true
}

func (p *partition) reportPaused(paused bool, unfinished int) {
	if paused {
		p.consumer.sink.Report(driver.Report{Kind: driver.ReportPaused, Source: p.source, Count: unfinished,
			Text: "the window of unfinished events is full: nothing more of this partition is fetched until the oldest is finished"})
	}
}

// hand delivers what fits and keeps the rest. The caller holds both locks; hand
// releases mu.
func (p *partition) hand(records []*kgo.Record) {
	places := make([]place, 0, len(records))
	taken, base := 0, p.window.Base
	for _, r := range records {
		if p.window.Bytes >= p.consumer.maxBytes {
			break
		}
		size := recordSize(r)
		verdict := p.window.Admit(r.Offset, size)
		if verdict == window.Full {
			break
		}
		taken++
		p.leader = r.LeaderEpoch
		if verdict == window.Skip {
			continue
		}
		if r.Attrs.IsControl() { // a transaction's marker: nobody sees it
			p.window.Finish(r.Offset, size)
			continue
		}
		places = append(places, place{partition: p, record: r, size: size})
	}
	if p.window.Base != base && len(places) == 0 {
		p.version++ // moved by what nobody settles
		p.consumer.wake()
	}
	p.backlog = nil
	if taken < len(records) {
		p.keep(records[taken:])
		p.consumer.wake() // to see whether it has to pause
	}
	paused := p.pauseIfFull(p.since)
	unfinished := p.window.Length()
	p.mu.Unlock()
	if len(places) > 0 {
		p.consumer.sink.Deliver(context.Background(), p.convert(places))
		clear(p.deliveries)
		if cap(p.deliveries) > readyDeliveries { // the largest fetch was an exception
			p.deliveries = nil
		}
	}
	p.reportPaused(paused, unfinished)
}

// readyDeliveries is how many deliveries the memory is kept for, from one hand to
// the next.
const readyDeliveries = 1024

// lateCommit is how long a window that moved without a settlement (over markers
// of transactions, or over what was finished before a restart) waits for one
// to be committed with. Without it an idle position would stay behind the log's
// end until retention passes it.
const lateCommit = time.Second

// roomy reports whether enough was finished to go on after a pause.
func (p *partition) roomy() bool {
	return p.window.Length() <= p.consumer.maxEvents/2 && p.window.Bytes <= p.consumer.maxBytes/2
}

func recordSize(r *kgo.Record) int {
	size := len(r.Key) + len(r.Value)
	for n := range r.Headers {
		size += len(r.Headers[n].Key) + len(r.Headers[n].Value)
	}
	return size
}

// convert makes deliveries of records. Keys and header values of one call share
// one string, headers one slice: a record costs no allocation of its own.
func (p *partition) convert(places []place) []driver.Delivery {
	text, headers := 0, 0
	for n := range places {
		r := places[n].record
		text += len(r.Key)
		headers += len(r.Headers)
		for h := range r.Headers {
			text += len(r.Headers[h].Value)
		}
	}
	var b strings.Builder
	b.Grow(text)
	for n := range places {
		r := places[n].record
		b.Write(r.Key)
		for h := range r.Headers {
			b.Write(r.Headers[h].Value)
		}
	}
	rest := b.String()
	slab := make([]driver.Header, 0, headers)
	p.deliveries = slices.Grow(p.deliveries[:0], len(places))
	for n := range places {
		r := places[n].record
		p.deliveries = append(p.deliveries, driver.Delivery{Ref: &places[n], Source: p.source, Time: r.Timestamp})
		d := &p.deliveries[n]
		d.Channel, d.Body, d.Size = p.channel, r.Value, places[n].size
		d.Key, rest = rest[:len(r.Key)], rest[len(r.Key):]
		from := len(slab)
		for h := range r.Headers {
			length := len(r.Headers[h].Value)
			slab = append(slab, driver.Header{Name: r.Headers[h].Key, Value: rest[:length]})
			rest = rest[length:]
		}
		d.Headers = slab[from:len(slab):len(slab)]
	}
	return p.deliveries
}

// again delivers what waits and may go now, resumes fetching where there is
// room, and returns how long until the next released event is due.
func (p *partition) again() (next time.Duration) {
	p.deliver.Lock()
	defer p.deliver.Unlock()
	next = time.Hour
	p.mu.Lock()
	if p.gone || p.revoking || p.window == nil {
		p.mu.Unlock()
		return next
	}
	now := time.Now()
	var due []place
	p.returned = slices.DeleteFunc(p.returned, func(r returned) bool {
		if wait := r.due.Sub(now); wait > 0 {
			next = min(next, wait)
			return false
		}
		due = append(due, place{partition: p, record: r.record, size: r.size})
		return true
	})
	if len(due) > 0 {
		p.mu.Unlock()
		slices.SortFunc(due, func(a, b place) int { return int(a.record.Offset - b.record.Offset) })
		p.consumer.sink.Deliver(context.Background(), p.convert(due))
		clear(p.deliveries)
		p.mu.Lock()
	}
	if p.gone || p.revoking || !p.paused && len(p.backlog) == 0 {
		p.mu.Unlock()
		return next
	}
	if len(p.backlog) > 0 && p.roomy() && p.window.Fits(p.backlog[0].Offset) {
		p.hand(p.backlog)
		p.mu.Lock()
	}
	if len(p.backlog) > 0 {
		paused := !p.gone && !p.revoking && p.pauseIfFull(now)
		if !p.paused {
			next = min(next, pauseAfter)
		}
		unfinished := p.window.Length()
		p.mu.Unlock()
		p.reportPaused(paused, unfinished)
		return next
	}
	resumed := p.paused && !p.gone && !p.revoking && p.roomy()
	if resumed {
		p.paused = false
		p.consumer.client.ResumeFetchPartitions(map[string][]int32{p.topic: {p.number}})
	}
	p.mu.Unlock()
	if resumed {
		p.consumer.sink.Report(driver.Report{Kind: driver.ReportResumed, Source: p.source})
	}
	return next
}
