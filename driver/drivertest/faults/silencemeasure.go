package faults

import (
	"fmt"
	"maps"
	"runtime"
	"strconv"
	"strings"
	"time"
)

// flows returns when, of every aggregate, the first event was finished that was
// published after a moment, and whether all were. Where events may be lost it is any
// event instead of the first.
func (t *Trial) flows(since time.Time) (at time.Time, all bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	first := make(map[string]string) // by aggregate
	finished := make(map[string]int64)
	of := make(map[string]string)
	for _, e := range t.entries {
		switch e.word {
		case wordStored:
			if e.at <= since.UnixNano() {
				continue
			}
			of[e.id] = e.place.Aggregate
			if first[e.place.Aggregate] == "" {
				first[e.place.Aggregate] = e.id
			}
		case wordHandled, wordDeduplicated, wordDead:
			if before, known := finished[e.id]; !known || e.at < before {
				finished[e.id] = e.at
			}
		}
	}
	if t.World.AtMostOnce {
		for id := range maps.Keys(finished) {
			if aggregate, known := of[id]; known {
				if before, known := finished[first[aggregate]]; !known || finished[id] < before {
					first[aggregate] = id
				}
			}
		}
	}
	last := int64(0)
	for n := range quiet.Aggregates {
		end, known := finished[first["a-"+strconv.Itoa(n)]]
		if !known {
			return time.Time{}, false
		}
		last = max(last, end)
	}
	return time.Unix(0, last), true
}

// recovers waits until everything flows that is published after a moment, and what
// came before it, since order holds.
func (s *silent) recovers(since time.Time) {
	s.Helper()
	var at time.Time
	if !s.Wait(2*s.limit(), func() (flows bool) { at, flows = s.flows(since); return flows }) {
		s.failf("nothing flows %v after the silence; %s", 2*s.limit(), s.State())
		s.dump(s.all()...)
		return
	}
	s.verdict.Recovered = max(s.verdict.Recovered, at.Sub(since), time.Millisecond)
	if took := at.Sub(since); took > s.limit() {
		s.failf("recovered after %v, more than the lease and %v", took.Round(time.Millisecond), SilenceMargin)
	}
	if s.During == Working && !s.Dead {
		s.honest(since, at)
	}
}

// honest: whoever stands still for long says so.
func (s *silent) honest(since, at time.Time) {
	s.Helper()
	if at.Sub(since) <= s.world.Session+SilenceMargin/2+s.slack {
		return
	}
	for _, p := range s.all() {
		if _, told := s.first(p, wordUnready, since); p.Role == Instance && told {
			return
		}
	}
	s.failf("all said that they were ready while nothing was handled for %v", at.Sub(since).Round(time.Millisecond))
}

// unready waits until instances say that they are not ready.
func (s *silent) unready(since time.Time, instances ...*Process) {
	s.Helper()
	for _, p := range instances {
		var at time.Time
		if !s.Wait(s.limit(), func() (told bool) { at, told = s.first(p, wordUnready, since); return told }) {
			s.failf("%s says that it is ready, %v after its server fell silent", p.Process, s.limit())
			continue
		}
		s.verdict.Unready = max(s.verdict.Unready, at.Sub(since))
	}
}

// readyAgain waits until instances say that they are ready.
func (s *silent) readyAgain(since time.Time, instances ...*Process) {
	s.Helper()
	for _, p := range instances {
		if !s.Wait(2*s.limit(), func() bool { return s.isHealthy(p) }) {
			s.failf("%s is not ready again after %v", p.Process, 2*s.limit())
			s.dump(p)
			continue
		}
		s.mu.Lock()
		at := s.since(p)
		s.mu.Unlock()
		took := max(at.Sub(since), 0)
		s.verdict.Ready = max(s.verdict.Ready, took)
		if took > s.limit() {
			s.failf("%s is ready again after %v, more than the lease and %v", p.Process, took.Round(time.Millisecond), SilenceMargin)
		}
	}
}

// ends gives processes the word to end and measures how long they take.
func (s *silent) ends(processes ...*Process) {
	s.Helper()
	since := time.Now()
	for _, p := range processes {
		if err := p.command.Process.Signal(signalEnd); err != nil && !p.Gone() {
			s.Errorf("%s: %v", p.Process, err)
		}
	}
	for _, p := range processes {
		if !s.Wait(2*s.endLimit()-time.Since(since), p.Gone) {
			s.failf("%s has not ended %v after SIGTERM", p.Process, time.Since(since).Round(time.Millisecond))
			s.dump(p)
			continue
		}
		took := time.Since(since)
		s.verdict.Ended = max(s.verdict.Ended, took)
		if took > s.endLimit() {
			returned, _ := s.first(p, wordReturned, since)
			s.failf("%s ended %v after SIGTERM, more than the drain timeout and %v; Run had returned after %v", p.Process, took.Round(time.Millisecond), EndMargin,
				max(returned.Sub(since), 0).Round(time.Millisecond))
		}
	}
}

// first returns when a process first wrote a word after a moment.
func (t *Trial) first(p *Process, word string, since time.Time) (time.Time, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, e := range t.entries {
		if e.process == p.Process && e.word == word && e.at >= since.UnixNano() {
			return time.Unix(0, e.at), true
		}
	}
	return time.Time{}, false
}

// isHealthy reports whether the last word of a process about its health is a good
// one.
func (t *Trial) isHealthy(p *Process) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return !t.since(p).IsZero()
}

// since returns since when a process is ready, or zero. The lock is held.
func (t *Trial) since(p *Process) (at time.Time) {
	for _, e := range t.entries {
		switch {
		case e.process != p.Process:
		case e.word == wordHealthy:
			at = time.Unix(0, e.at)
		case e.word == wordUnready:
			at = time.Time{}
		}
	}
	return at
}

// dump ends processes in a way that shows where they stand.
func (s *silent) dump(processes ...*Process) {
	for _, p := range processes {
		if p.Role == Instance && !p.Gone() {
			_ = p.command.Process.Signal(signalDump)
			<-p.ended
			s.Logf("%s stood here:\n%s", p.Process, ours(p.output.String()))
		}
	}
}

// ours returns of a dump what a person looks for: where each goroutine stands in this
// repository, outermost last.
func ours(dump string) string {
	_, this, _, _ := runtime.Caller(0)
	root := strings.TrimSuffix(this, "driver/drivertest/faults/silencemeasure.go")
	var text strings.Builder
	for _, one := range strings.Split(dump, "\n\n") {
		head, rest, _ := strings.Cut(one, "\n")
		var frames []string
		for frame := range strings.Lines(rest) {
			_, at, found := strings.Cut(frame, root)
			if !strings.HasPrefix(frame, "\t") || !found {
				continue
			}
			at, _, _ = strings.Cut(at, " ")
			frames = append(frames, strings.TrimSpace(at))
		}
		if len(frames) > 0 {
			fmt.Fprintf(&text, "%s %s\n", head, strings.Join(frames, " < "))
		}
	}
	return text.String()
}
