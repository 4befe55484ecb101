package kafka

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/tidings-go/tidings"
	"github.com/tidings-go/tidings/driver/drivertest"
)

// The tests of this file run consumers in processes of their own, and kill
// them. Such a process is this test binary with the variables below; it says on
// its standard output what it is given and what it has done, a line each.
const (
	variableConsumer  = "TIDINGS_TEST_CONSUMER" // the namespace
	variableAddresses = "TIDINGS_TEST_CONSUMER_BROKERS"
	variableStuck     = "TIDINGS_TEST_CONSUMER_STUCK" // "1": handlers of stuck aggregates fail
)

func TestMain(m *testing.M) {
	if prefix := os.Getenv(variableConsumer); prefix != "" {
		if err := consume(prefix); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

type recordPayload struct {
	Number int `json:"number"`
}

var recordKept = tidings.Define[recordPayload]("crash.record.kept", 1, tidings.Repeatable)

// crashOptions are those of every process of a test: one partition, and a
// session that is over soon after its process is.
func crashOptions(addresses []string, prefix string) Options {
	return Options{Brokers: addresses, Namespace: prefix, Partitions: 1, SessionTimeout: 6 * time.Second, RebalanceTimeout: 10 * time.Second}
}

// teller writes a line for each step of an event.
type teller struct{ mu sync.Mutex }

// Observe implements [tidings.Observer].
func (o *teller) Observe(_ context.Context, at tidings.Observation) {
	o.mu.Lock()
	defer o.mu.Unlock()
	switch at.Kind {
	case tidings.Received, tidings.Handled, tidings.DeadLettered, tidings.Retried:
		fmt.Printf("%s %s\n", at.Kind, at.ID)
	case tidings.Settled:
		fmt.Printf("%s %d\n", at.Kind, at.Count)
	}
}

// consume is what a process of these tests does until it is killed or its
// standard input ends.
func consume(prefix string) error {
	d, err := New(crashOptions(strings.Split(os.Getenv(variableAddresses), ","), prefix))
	if err != nil {
		return err
	}
	b := tidings.New(d, &tidings.Options{Logger: slog.New(slog.DiscardHandler), Observers: []tidings.Observer{&teller{}}})
	stuck := os.Getenv(variableStuck) == "1"
	backoff := tidings.Backoff{Initial: 50 * time.Millisecond, Max: 50 * time.Millisecond, Multiplier: 1}
	options := &tidings.SubscribeOptions{StartAt: tidings.StartBeginning, MaxAttempts: 1 << 30, Backoff: backoff}
	b.Module("crash").Subscribe("keep", options, recordKept.On(func(_ context.Context, e tidings.Event[recordPayload]) error {
		if stuck && strings.HasPrefix(e.AggregateID(), "stuck") {
			return errors.New("stuck")
		}
		return nil
	}))
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() {
		var one [1]byte
		_, _ = os.Stdin.Read(one[:]) // its end is the word to stop
		cancel()
	}()
	return b.Run(ctx)
}

// consumerProcess is a running consumer and what it has said so far.
type consumerProcess struct {
	t       *testing.T
	command *exec.Cmd
	input   interface{ Close() error }
	ended   chan struct{}
	once    sync.Once

	mu      sync.Mutex
	lines   map[string][]string // event ids by what was done
	settled int
}

func startConsumer(t *testing.T, addresses []string, prefix string, stuck bool) *consumerProcess {
	t.Helper()
	p := &consumerProcess{t: t, ended: make(chan struct{}), lines: make(map[string][]string)}
	p.command = exec.Command(os.Args[0]) //nolint:noctx // its end is a part of the test
	p.command.Env = append(os.Environ(), variableConsumer+"="+prefix, variableAddresses+"="+strings.Join(addresses, ","))
	if stuck {
		p.command.Env = append(p.command.Env, variableStuck+"=1")
	}
	p.command.Stderr = os.Stderr
	input, err := p.command.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	p.input = input
	output, err := p.command.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.command.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(p.ended)
		for scanner := bufio.NewScanner(output); scanner.Scan(); {
			word, of, _ := strings.Cut(scanner.Text(), " ")
			p.mu.Lock()
			if n, err := strconv.Atoi(of); err == nil && word == tidings.Settled.String() {
				p.settled += n
			} else {
				p.lines[word] = append(p.lines[word], of)
			}
			p.mu.Unlock()
		}
	}()
	t.Cleanup(p.kill)
	return p
}

// kill ends the process as the kernel does when memory is short: at once.
func (p *consumerProcess) kill() {
	p.once.Do(func() {
		if err := p.command.Process.Kill(); err != nil {
			p.t.Errorf("kill: %v", err)
		}
		<-p.ended
		_ = p.command.Wait() // "signal: killed"
	})
}

// stop lets the process end in good order.
func (p *consumerProcess) stop() {
	p.t.Helper()
	p.once.Do(func() {
		p.input.Close()
		<-p.ended
		if err := p.command.Wait(); err != nil {
			p.t.Errorf("the consumer: %v", err)
		}
	})
}

func (p *consumerProcess) said(word string) []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]string(nil), p.lines[word]...)
}

func (p *consumerProcess) settledCount() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.settled
}

// crashPublisher is a bus that only publishes.
func crashPublisher(t *testing.T, addresses []string, prefix string) func(events ...tidings.DomainEvent) {
	t.Helper()
	d, err := New(crashOptions(addresses, prefix))
	if err != nil {
		t.Fatal(err)
	}
	b := tidings.New(d, &tidings.Options{Logger: slog.New(slog.DiscardHandler)})
	t.Cleanup(func() {
		if err := b.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return func(events ...tidings.DomainEvent) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		if err := b.Publish(ctx, events...); err != nil {
			t.Fatal(err)
		}
	}
}

func crashNamespace(t *testing.T) ([]string, string) {
	t.Helper()
	addresses := brokers(t, "KAFKA_BROKERS")
	prefix := fmt.Sprintf("crash-%d-%d", time.Now().UnixNano(), namespaces.Add(1))
	t.Cleanup(func() { removeNamespace(t, addresses, prefix) })
	return addresses, prefix
}

// A process with 10 000 finished events beyond a few unfinished ones is killed:
// the next one is given the unfinished ones only.
func TestRealKillRedeliversOnlyUnfinished(t *testing.T) {
	t.Parallel()
	const finished, stuck = 10_000, 10
	addresses, prefix := crashNamespace(t)
	publish := crashPublisher(t, addresses, prefix)
	unfinished := make(map[string]bool)
	for n := range stuck {
		batch := make([]tidings.DomainEvent, 0, finished/stuck+2)
		for range 2 { // the second waits behind the first
			e := recordKept.New(fmt.Sprint("stuck-", n), recordPayload{n})
			unfinished[e.ID()] = true
			batch = append(batch, e)
		}
		for at := range finished / stuck {
			batch = append(batch, recordKept.New(fmt.Sprint("flowing-", at%200), recordPayload{at}))
		}
		publish(batch...)
	}
	first := startConsumer(t, addresses, prefix, true)
	drivertest.Eventually(t, "10 000 events are finished and committed", func() bool { return first.settledCount() == finished })
	drivertest.Eventually(t, "the stuck ones are tried", func() bool { return len(first.said("retried")) > stuck })
	first.kill()
	if n := len(first.said("dead-lettered")); n > 0 {
		t.Errorf("%d dead letters", n)
	}

	killed := time.Now()
	second := startConsumer(t, addresses, prefix, false)
	last := recordKept.New("flowing-0", recordPayload{-1})
	publish(last)
	drivertest.Eventually(t, "the next process handles what was left, and one event more", func() bool { return len(second.said("handled")) >= len(unfinished)+1 })
	took := time.Since(killed)
	second.stop()
	given := second.said("received")
	for _, id := range given {
		if !unfinished[id] && id != last.ID() {
			t.Errorf("event %s was finished and came again", id)
		}
	}
	t.Logf("%d events were finished and %d unfinished when the process was killed; the next one was given %d of them, %v after the kill",
		finished, len(unfinished), len(given)-1, took.Round(time.Millisecond))
	if len(given)-1 != len(unfinished) {
		t.Errorf("%d events came again, %d were unfinished", len(given)-1, len(unfinished))
	}
}

// Processes are killed in the middle of their work: nothing is lost, and what
// comes again was not committed.
func TestRealKillLosesNothing(t *testing.T) {
	t.Parallel()
	const total = 4_000
	addresses, prefix := crashNamespace(t)
	publish := crashPublisher(t, addresses, prefix)
	published := make(map[string]bool)
	for n := 0; n < total; n += 200 {
		var batch []tidings.DomainEvent
		for at := range 200 {
			e := recordKept.New(fmt.Sprint("flowing-", at%50), recordPayload{n + at})
			published[e.ID()] = true
			batch = append(batch, e)
		}
		publish(batch...)
	}
	first := startConsumer(t, addresses, prefix, false)
	drivertest.Eventually(t, "some events are committed", func() bool { return first.settledCount() > 0 })
	first.kill()
	committed := first.settledCount()
	handled := make(map[string]int)
	for _, id := range first.said("handled") {
		handled[id]++
	}
	before := len(handled)

	second := startConsumer(t, addresses, prefix, false)
	missing := func() int {
		seen := make(map[string]bool)
		for id := range handled {
			seen[id] = true
		}
		for _, id := range second.said("handled") {
			seen[id] = true
		}
		return total - len(seen)
	}
	drivertest.Eventually(t, "the rest is handled", func() bool { return missing() == 0 })
	second.stop()
	twice := 0
	for _, id := range second.said("handled") {
		if !published[id] {
			t.Errorf("event %s was never published", id)
		}
		if handled[id]++; handled[id] == 2 {
			twice++
		}
	}
	t.Logf("of %d events %d were handled and at least %d committed when the process was killed; %d were handled twice, none is lost", total, before, committed, twice)
	if most := before - committed; twice > most {
		t.Errorf("%d events were handled twice, at most %d were not committed", twice, most)
	}
}

// One record that nobody can read lies between two good ones of its partition:
// in a process that is told nothing of it, both are handled.
func TestRealPoisonBetweenGoodRecords(t *testing.T) {
	t.Parallel()
	addresses, prefix := crashNamespace(t)
	publish := crashPublisher(t, addresses, prefix)
	publish(recordKept.New("a", recordPayload{1}))
	poison := &kgo.Record{Topic: prefix + ".events.crash-record-kept", Key: []byte("a"), Value: []byte("\xff\x00 nobody reads this")}
	if err := client(t, addresses).ProduceSync(t.Context(), poison).FirstErr(); err != nil {
		t.Fatal(err)
	}
	publish(recordKept.New("a", recordPayload{2}))
	p := startConsumer(t, addresses, prefix, false)
	drivertest.Eventually(t, "both good ones are handled and all three are settled", func() bool { return len(p.said("handled")) == 2 && p.settledCount() == 3 })
	p.stop()
	letters := deadLetters(t, addresses, prefix)
	if len(letters) != 1 || string(letters[0].Body) != string(poison.Value) || letters[0].Reason != "undecodable" {
		t.Errorf("dead letters %+v", letters)
	}
}
