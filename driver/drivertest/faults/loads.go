package faults

import (
	"context"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
)

const poisonEvery = 7

func poison(t *Trial, size Size) {
	t.begin(2, Work{PoisonEvery: poisonEvery}, Load{Aggregates: 12, Batch: 4, Pause: 10 * time.Millisecond, Events: 200 * size.Times})
	t.Hit()
	t.Wait(90*time.Second, func() bool { return t.finishedNow() >= 200*size.Times })
}

func slowHandlers(t *Trial, size Size) {
	events := 60 * min(size.Times, 2)
	if t.World.Serial { // one slow handler after the other
		events = 30 * min(size.Times, 2)
		t.note = "the other consumer waits for the file, and loses its share meanwhile"
	}
	t.begin(2, Work{SlowEvery: 5, SlowFor: t.World.Session*2 + time.Second}, Load{Aggregates: 12, Batch: 6, Pause: 20 * time.Millisecond, Events: events})
	t.Hit()
	t.Wait(90*time.Second, func() bool { return t.finishedNow() >= events })
}

// late adds a second subscription, which gets everything from the beginning.
func late(t *Trial, size Size) {
	t.begin(2, Work{}, usual)
	t.flow(100)
	t.mu.Lock()
	t.late = true
	for _, s := range slices.Collect(maps.Values(t.published)) {
		t.publish(s)
	}
	t.mu.Unlock()
	for range 2 {
		t.Ready(t.Start(Order{Role: Consumer, Late: true}))
		t.Hit()
	}
	t.flow(60 * size.Times)
}

func overload(t *Trial, size Size) {
	events := 1500 * min(size.Times, 4)
	if t.World.OneProcess || t.World.Serial {
		events = 1500 // a publisher may have to wait for its handlers
	}
	consumers, _ := t.begin(1, Work{Takes: 20 * time.Millisecond}, Load{Aggregates: 200, Batch: 100, Events: events})
	t.Hit()
	t.Wait(150*time.Second, func() bool { return t.finishedNow() >= events })
	t.note = "most memory of a consumer " + memoryOf(consumers[0])
}

// memoryOf returns the largest resident size that a process has had, where the
// system tells.
func memoryOf(p *Process) string {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.command.Process.Pid))
	if err != nil {
		return "unknown"
	}
	for line := range strings.Lines(string(status)) {
		if rest, found := strings.CutPrefix(line, "VmHWM:"); found {
			kilobytes, err := strconv.Atoi(strings.TrimSuffix(strings.TrimSpace(rest), " kB"))
			if err == nil {
				return fmt.Sprintf("%d MiB", kilobytes>>10)
			}
		}
	}
	return "unknown"
}

func large(t *Trial, size Size) {
	bytes := t.World.Largest
	if bytes == 0 {
		bytes = 900_000
	}
	events := 6 * size.Times
	t.begin(2, Work{}, Load{Aggregates: 4, Batch: 2, Pause: 20 * time.Millisecond, Events: events, Bytes: bytes})
	t.Hit()
	t.Wait(90*time.Second, func() bool { return t.finishedNow() >= events })
	t.note = fmt.Sprintf("%d bytes each", bytes)
}

// transactions reports whether publishers of this world commit.
func (t *Trial) transactions() bool {
	t.Helper()
	parts, err := t.World.Enter(t.Context(), t.Place, &Trap{})
	if err != nil {
		t.Fatal(err)
	}
	_ = parts.Driver.Close(context.WithoutCancel(t.Context()))
	if parts.Close != nil {
		parts.Close()
	}
	return parts.Committed != nil
}
