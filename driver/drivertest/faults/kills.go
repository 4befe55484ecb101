package faults

import (
	"fmt"
	"strconv"
	"time"
)

func killBeforeSettle(t *Trial, size Size) {
	t.begin(1, Work{}, usual)
	for n := range size.Times {
		t.Start(Order{Role: Consumer, Point: AfterCommitBeforeSettle, Count: 1 + n*3}).Died(90 * time.Second)
		t.Hit()
	}
	t.flow(50)
}

func killConsumers(t *Trial, size Size) {
	consumers, _ := t.begin(2, Work{Takes: 20 * time.Millisecond}, usual)
	for n := range size.Times {
		t.flow(60)
		consumers[n%len(consumers)].Kill()
		t.Hit()
		consumers[n%len(consumers)] = t.Start(Order{Role: Consumer, Work: consumers[n%len(consumers)].Work})
	}
	t.flow(50)
}

func killPublishers(t *Trial, size Size) {
	_, publisher := t.begin(2, Work{}, usual)
	publisher.Stop()
	point := AfterPublish
	if t.transactions() {
		point = AfterCommit
	}
	for n := range size.Times {
		t.Start(Order{Role: Publisher, Load: usual, Lane: "a", Point: point, Count: 3 + n}).Died(60 * time.Second)
		t.Hit()
	}
	last := t.Start(Order{Role: Publisher, Load: usual, Lane: "a"})
	t.Until("the last publisher goes on", time.Minute, func() bool { return t.told(last, wordStored) >= 80 })
}

func killOnly(t *Trial, size Size) {
	p, _ := t.begin(1, Work{Takes: 20 * time.Millisecond}, usual)
	for range size.Times {
		t.flow(60)
		p[0].Kill()
		t.Hit()
		p[0] = t.Start(Order{Role: Both, Work: p[0].Work, Load: usual, Lane: "a"})
		t.Ready(p[0])
	}
	t.flow(50)
	t.note = "what waits in memory is lost with the process"
}

func stopOnly(t *Trial, size Size) {
	for range size.Times {
		p, _ := t.begin(1, Work{Takes: 5 * time.Millisecond}, usual)
		t.flow(60)
		p[0].Stop()
		t.Hit()
	}
}

func freeze(t *Trial, size Size) {
	consumers, _ := t.begin(2, Work{Takes: 10 * time.Millisecond}, usual)
	for n := range max(size.Times/2, 1) {
		t.flow(60)
		zombie := consumers[n%len(consumers)]
		zombie.Freeze()
		Pause(t.World.Session*2 + time.Second)
		zombie.Thaw()
		t.Hit()
	}
	t.flow(100)
}

func rebalance(t *Trial, size Size) {
	work := Work{Takes: 30 * time.Millisecond}
	t.begin(1, work, Load{Aggregates: 64, Batch: 16, Pause: 20 * time.Millisecond})
	for range size.Times {
		t.flow(80)
		other := t.Start(Order{Role: Consumer, Work: work})
		t.Ready(other)
		t.flow(80)
		other.Stop()
		t.Hit()
	}
	t.flow(80)
}

func rolling(t *Trial, size Size) {
	work := Work{Takes: 5 * time.Millisecond}
	consumers, _ := t.begin(1, work, usual)
	for range 2 {
		consumers = append(consumers, t.Start(Order{Role: Consumer, Work: work}))
	}
	t.Ready(consumers...)
	for n := range size.Times * 2 {
		t.flow(40)
		next := t.Start(Order{Role: Consumer, Work: work})
		t.Ready(next)
		consumers[n%3].Stop()
		consumers[n%3] = next
		t.Hit()
	}
	consumers[1].Stop()
	consumers[2].Stop()
	t.flow(60)
	t.note = strconv.Itoa(size.Times*2) + " restarts"
}

func consumersFirst(t *Trial, _ Size) {
	old, publisher := t.begin(2, Work{}, usual)
	t.flow(60)
	var replaced []*Process
	for _, p := range old {
		next := t.Start(Order{Role: Consumer, Binary: 1})
		t.Ready(next)
		replaced = append(replaced, next)
		t.flow(30)
		p.Stop()
		t.Hit()
	}
	publisher.Stop()
	t.Start(Order{Role: Publisher, Load: usual, Lane: "a", Binary: 1})
	t.flow(100)
	_ = replaced
}

func publishersFirst(t *Trial, _ Size) {
	old, publisher := t.begin(2, Work{}, usual)
	t.flow(60)
	publisher.Stop()
	published := t.Published()
	next := t.Start(Order{Role: Publisher, Load: usual, Lane: "a", Binary: 1})
	t.Until("the new version is published", time.Minute, func() bool { return t.told(next, wordStored) >= 60 })
	next.Stop()
	t.Wait(20*time.Second, func() bool { return t.finishedNow() >= published }) // the old ones hold the rest
	for _, p := range old {
		t.Start(Order{Role: Consumer, Binary: 1})
		p.Stop()
		t.Hit()
	}
}

func crash(t *Trial, _ Size) {
	// A few aggregates: what else was running when the process ended is started
	// again too, and is not to blame.
	work := Work{CrashAggregate: "a-3", CrashNumber: 4, Takes: 2 * time.Millisecond}
	order := Order{Role: Consumer, Work: work, MaxCrashes: 3}
	consumers := []*Process{t.Start(order), t.Start(order)}
	t.Ready(consumers...)
	publisher := t.Start(Order{Role: Publisher, Load: Load{Aggregates: 6, Batch: 3, Pause: 30 * time.Millisecond}, Lane: "a"})
	crashes := 0
	t.Until("the event is a dead letter", 90*time.Second, func() bool {
		for n, p := range consumers {
			if p.Gone() {
				p.Fault()
				crashes++
				t.Hit()
				consumers[n] = t.Start(order)
			}
		}
		return t.counts[wordDead] > 0
	})
	publisher.Stop()
	t.note = fmt.Sprintf("the process ended %d times", crashes)
}
