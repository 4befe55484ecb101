// Command bounded measures that memory stays bounded under what ought to fill it: a
// handler that never returns, a million events of one aggregate, a million
// aggregates, and a broker that is gone while publishers go on.
//
//	go run ./bench/bounded                                       in memory
//	KAFKA_BROKERS=127.0.0.1:9092 go run ./bench/bounded          and on that Kafka
//	TIDINGS_POSTGRES_URL=postgres://… go run ./bench/bounded     and on that PostgreSQL
//	REDIS_URL=redis://… go run ./bench/bounded           and on that Redis
//
// Peak is the largest heap that was in use at any time, garbage included; left is what
// a collection leaves when all is handled. It exits with 1 when either is over the
// bound that is printed beside it.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"text/tabwriter"
	"time"

	"github.com/tidings-go/tidings"
	"github.com/tidings-go/tidings/driver"
)

type notePayload struct {
	Number int    `json:"number"`
	Text   string `json:"text"`
}

var noteTaken = tidings.Define[notePayload]("bounded.note.taken", 1, tidings.Repeatable)

const (
	text      = "a hundred bytes of text or so, which is about what an event of a business has beside its ids and numbers"
	perCall   = 500
	down      = 20 * time.Second // how long the broker is gone
	patience  = time.Second      // of a publisher meanwhile
	senders   = 32
	slowest   = 20 * time.Minute
	mebibytes = 1 << 20
)

func main() {
	events := flag.Int("events", 1_000_000, "events of each measurement")
	only := flag.String("only", "", "drivers to measure, separated by commas; all that can be reached by default")
	what := flag.String("measure", "", "what to measure, separated by commas, for example \"dead broker\"; everything by default")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, os.Stdout, *events, *only, *what); err != nil {
		fmt.Fprintln(os.Stderr, "bounded:", err)
		os.Exit(1)
	}
}

// broker is one kind of driver that is measured.
type broker struct {
	name string
	// open makes a driver that reaches its broker through the line.
	open func(ctx context.Context, l *line) (driver.Driver, error)
	// without says what there is none of.
	without map[string]string
	// remove clears up.
	remove func(ctx context.Context) error
	// peak and left replace the bounds of a measurement where they are larger: a
	// driver bounds what it fetches for each source by itself.
	peak, left int64
}

func run(ctx context.Context, out io.Writer, events int, only, what string) error {
	fmt.Fprintf(out, "%s, %d processors\n\n", runtime.Version(), runtime.NumCPU())
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "driver\tmeasurement\tevents\tpeak MiB\tof at most\tleft MiB\tof at most\tgoroutines +\ttook\t")
	over := 0
	for _, make := range []func(context.Context) (*broker, error){inMemory, onKafka, onPostgres, onRedis} {
		b, err := make(ctx)
		if err != nil {
			return err
		}
		if b == nil || !chosen(only, b.name) {
			continue
		}
		for _, m := range measurements() {
			if !chosen(what, m.name) {
				continue
			}
			if reason, without := b.without[m.name]; without {
				fmt.Fprintf(table, "%s\t%s\t\t\t\t\t\t\t%s\t\n", b.name, m.name, reason)
				continue
			}
			f, err := measure(ctx, b, m, events)
			if err != nil {
				return fmt.Errorf("%s, %s: %w", b.name, m.name, err)
			}
			m.peak, m.left = max(m.peak, b.peak), max(m.left, b.left)
			if f.peak > m.peak || f.left > m.left {
				over++
			}
			fmt.Fprintf(table, "%s\t%s\t%d\t%.1f\t%d\t%.1f\t%d\t%d\t%v\t%s\n",
				b.name, m.name, f.events, float64(f.peak)/mebibytes, m.peak/mebibytes, float64(f.left)/mebibytes, m.left/mebibytes, f.goroutines, f.took.Round(100*time.Millisecond), f.note)
			fmt.Fprintf(os.Stderr, "bounded: %s, %s: peak %.1f MiB, left %.1f MiB\n", b.name, m.name, float64(f.peak)/mebibytes, float64(f.left)/mebibytes)
		}
		if b.remove != nil {
			if err := b.remove(context.WithoutCancel(ctx)); err != nil {
				return fmt.Errorf("%s: %w", b.name, err)
			}
		}
	}
	if err := table.Flush(); err != nil {
		return err
	}
	if over > 0 {
		return fmt.Errorf("%d figures are over their bound", over)
	}
	return nil
}

// chosen reports whether a list names something; an empty one names everything.
func chosen(list, name string) bool {
	return list == "" || slices.Contains(strings.Split(list, ","), name)
}

// measurement is one thing that could fill memory.
type measurement struct {
	name       string
	peak, left int64 // at most, in bytes
	do         func(ctx context.Context, s *scene) error
}

func measurements() []measurement {
	return []measurement{
		{"stuck handler", 400 * mebibytes, 96 * mebibytes, stuck},
		{"one aggregate", 400 * mebibytes, 96 * mebibytes, func(ctx context.Context, s *scene) error { return flow(ctx, s, 1) }},
		{"an aggregate each", 400 * mebibytes, 96 * mebibytes, func(ctx context.Context, s *scene) error { return flow(ctx, s, s.events) }},
		{"dead broker", 200 * mebibytes, 96 * mebibytes, dead},
	}
}

// scene is one measurement under way.
type scene struct {
	bus     *tidings.Bus
	line    *line
	events  int
	handled atomic.Int64
	stuck   chan struct{} // closed: handlers return
	note    string
}

// figures are what one measurement has found.
type figures struct {
	events     int
	peak, left int64
	goroutines int
	took       time.Duration
	note       string
}

func measure(ctx context.Context, b *broker, m measurement, events int) (f figures, err error) {
	before, goroutines := heap(), runtime.NumGoroutine()
	s := &scene{line: &line{}, events: events, stuck: make(chan struct{})}
	if m.name != "stuck handler" {
		close(s.stuck)
	}
	d, err := b.open(ctx, s.line)
	if err != nil {
		return f, err
	}
	s.bus = tidings.New(d, &tidings.Options{Logger: slog.New(slog.DiscardHandler), DrainTimeout: time.Second})
	name := fmt.Sprintf("count-%d", time.Now().UnixNano())
	s.bus.Module("bounded").Subscribe(name, &tidings.SubscribeOptions{StartAt: tidings.StartNow, Timeout: -1}, noteTaken.On(
		func(context.Context, tidings.Event[notePayload]) error {
			<-s.stuck
			s.handled.Add(1)
			return nil
		}))
	running, stop := context.WithCancel(ctx)
	defer stop()
	ended := make(chan error, 1)
	go func() { ended <- s.bus.Run(running) }()
	if err := s.bus.Ready(running); err != nil {
		return f, errors.Join(err, <-ended)
	}
	w := watch()
	began := time.Now()
	err = m.do(ctx, s)
	f = figures{events: int(s.handled.Load()), took: time.Since(began), note: s.note}
	f.left = heap() - before // the bus still runs
	peak, most := w.end()
	f.peak, f.goroutines = peak-before, most-goroutines
	stop()
	return f, errors.Join(err, <-ended)
}

// publish publishes events until the end or an error.
func publish(ctx context.Context, b *tidings.Bus, from, to, aggregates int) error {
	batch := make([]tidings.DomainEvent, 0, perCall)
	for n := from; n < to; {
		batch = batch[:0]
		for ; len(batch) < perCall && n < to; n++ {
			batch = append(batch, noteTaken.New(fmt.Sprint("note-", n%aggregates), notePayload{n, text}))
		}
		if err := b.Publish(ctx, batch...); err != nil {
			return err
		}
	}
	return nil
}

// flow publishes and handles everything. There are many publishers, because each has
// the events of one aggregate stored one after the other.
func flow(ctx context.Context, s *scene, aggregates int) error {
	ctx, cancel := context.WithTimeout(ctx, slowest)
	defer cancel()
	each := (s.events + senders - 1) / senders
	failures := make(chan error, senders)
	for n := range senders {
		go func() { failures <- publish(ctx, s.bus, min(n*each, s.events), min((n+1)*each, s.events), aggregates) }()
	}
	var err error
	for range senders {
		err = errors.Join(err, <-failures)
	}
	if err != nil {
		return err
	}
	for s.handled.Load() < int64(s.events) {
		if err := pause(ctx, 10*time.Millisecond); err != nil {
			return fmt.Errorf("%d of %d are handled: %w", s.handled.Load(), s.events, err)
		}
	}
	return nil
}

// stuck publishes while no handler returns, until everything is stored or, where
// publishers have to wait for room, nothing more is taken. Then the handlers return,
// and what was stored is handled.
func stuck(ctx context.Context, s *scene) error {
	var stored atomic.Int64
	var publishers sync.WaitGroup
	limited, cancel := context.WithTimeout(ctx, slowest)
	defer cancel()
	each := max(s.events/senders, 1)
	for n := range senders {
		publishers.Go(func() {
			for at := n * each; at < (n+1)*each; at += perCall {
				to := min(at+perCall, (n+1)*each)
				short, cancelShort := context.WithTimeout(limited, 15*time.Second)
				err := publish(short, s.bus, at, to, 100_000)
				cancelShort()
				if err != nil {
					return
				}
				stored.Add(int64(to - at))
			}
		})
	}
	publishers.Wait()
	s.note = fmt.Sprintf("%d of %d were stored", stored.Load(), each*senders)
	if err := pause(ctx, 3*time.Second); err != nil { // what is fetched meanwhile
		return err
	}
	close(s.stuck)
	for s.handled.Load() < stored.Load() {
		if err := pause(limited, 10*time.Millisecond); err != nil {
			return fmt.Errorf("%d of %d are handled: %w", s.handled.Load(), stored.Load(), err)
		}
	}
	return nil
}

// dead lets publishers go on while the broker is gone.
func dead(ctx context.Context, s *scene) error {
	if err := publish(ctx, s.bus, 0, 1000, 100); err != nil {
		return err
	}
	s.line.cut(true)
	var tried, failed atomic.Int64
	var publishers sync.WaitGroup
	until := time.Now().Add(down)
	for range senders {
		publishers.Go(func() {
			for n := 0; time.Now().Before(until); n++ {
				short, cancel := context.WithTimeout(ctx, patience)
				tried.Add(1)
				if err := s.bus.Publish(short, noteTaken.New(fmt.Sprint("note-", n%1000), notePayload{n, text})); err != nil {
					failed.Add(1)
				}
				cancel()
			}
		})
	}
	publishers.Wait()
	s.line.cut(false)
	s.note = fmt.Sprintf("%d events published without a broker, %d failed", tried.Load(), failed.Load())
	again, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for publish(again, s.bus, 0, 1, 1) != nil {
		if err := pause(again, 100*time.Millisecond); err != nil {
			return fmt.Errorf("nothing can be published after the broker is back: %w", err)
		}
	}
	return nil
}

func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// heap is what is in use after a collection.
func heap() int64 {
	runtime.GC()
	runtime.GC() // what a finalizer of the first has freed
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// watcher looks at the heap all the time.
type watcher struct {
	quit, ended chan struct{}
	peak        int64
	goroutines  int
}

func watch() *watcher {
	w := &watcher{quit: make(chan struct{}), ended: make(chan struct{})}
	go func() {
		defer close(w.ended)
		ticks := time.NewTicker(50 * time.Millisecond)
		defer ticks.Stop()
		for {
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			w.peak, w.goroutines = max(w.peak, int64(m.HeapAlloc)), max(w.goroutines, runtime.NumGoroutine())
			select {
			case <-ticks.C:
			case <-w.quit:
				return
			}
		}
	}()
	return w
}

func (w *watcher) end() (peak int64, goroutines int) {
	close(w.quit)
	<-w.ended
	return w.peak, w.goroutines
}
