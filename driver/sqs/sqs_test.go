package sqs

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/aws-sdk-go-v2/service/sqs/types"

	"github.com/tidings-go/tidings"
	"github.com/tidings-go/tidings/driver"
	"github.com/tidings-go/tidings/driver/drivertest"
	"github.com/tidings-go/tidings/driver/sqs/sqstest"
)

func newDriver(t testing.TB, url string, change ...func(*Options)) *Driver {
	t.Helper()
	options := Options{Client: client(url, nil), FIFO: true, VisibilityTimeout: 2 * time.Second, PollWait: time.Second}
	for _, f := range change {
		f(&options)
	}
	d, err := New(options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(context.Background()); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return d
}

func subscription(name string, types ...string) driver.Subscription {
	return driver.Subscription{Name: name, Channels: types, Types: types}
}

func message(eventType, key, body string) driver.Message {
	return driver.Message{Channel: eventType, Type: eventType, Key: key, ID: eventType + body, Body: []byte(body), Headers: driver.Headers{{Name: driver.HeaderEventType, Value: eventType}}}
}

func publish(t testing.TB, d *Driver, messages ...driver.Message) {
	t.Helper()
	if err := d.Publish(t.Context(), messages); err != nil {
		t.Fatalf("Publish: %v", err)
	}
}

type countPayload struct {
	Number int `json:"number"`
}

var counted = tidings.Define[countPayload]("counts.number.counted", 1, tidings.Repeatable)

func quiet() *tidings.Options { return &tidings.Options{Logger: slog.New(slog.DiscardHandler)} }

// slowHandler gives ten events of one aggregate to two processes. The first of them
// is handled for as long as given; each of the ten is to be handled once and, on a
// FIFO queue, in order.
func slowHandler(t *testing.T, duration time.Duration, open func() *Driver) {
	t.Helper()
	var mu sync.Mutex
	var handled []int
	started := 0
	handle := func(ctx context.Context, e tidings.Event[countPayload]) error {
		mu.Lock()
		started++
		mu.Unlock()
		takes := 50 * time.Millisecond
		if e.Payload().Number == 0 {
			takes = duration
		}
		timer := time.NewTimer(takes)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-ctx.Done():
			return ctx.Err()
		}
		mu.Lock()
		defer mu.Unlock()
		handled = append(handled, e.Payload().Number)
		return nil
	}
	var events []tidings.DomainEvent
	for n := range 10 {
		events = append(events, counted.New("one", countPayload{n}))
	}
	d := open()
	publishing := tidings.New(d, quiet())
	if err := publishing.Publish(t.Context(), events...); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var running sync.WaitGroup
	for range 2 {
		b := tidings.New(open(), quiet())
		b.Module("counts").Subscribe("slowly", &tidings.SubscribeOptions{Timeout: 2 * duration}, counted.On(handle))
		running.Go(func() {
			if err := b.Run(ctx); err != nil {
				t.Errorf("Run: %v", err)
			}
		})
	}
	count := func() int {
		mu.Lock()
		defer mu.Unlock()
		return len(handled)
	}
	began := time.Now()
	for deadline := began.Add(duration + 30*time.Second); count() < 10 && time.Now().Before(deadline); {
		timer := time.NewTimer(20 * time.Millisecond)
		<-timer.C
	}
	took := time.Since(began)
	// What came a second time would be here by then.
	timer := time.NewTimer(d.options.VisibilityTimeout + time.Second)
	<-timer.C
	stop()
	running.Wait()
	mu.Lock()
	defer mu.Unlock()
	if started != 10 || len(handled) != 10 || d.options.FIFO && fmt.Sprint(handled) != "[0 1 2 3 4 5 6 7 8 9]" {
		t.Errorf("handled %v in %d calls", handled, started)
	}
	t.Logf("a handler of %v behind a visibility timeout of %v: ten events in %d calls and %v", duration, d.options.VisibilityTimeout, started, took.Round(time.Second))
}

// What waits behind a slow handler stays with its process, too.
func TestSlowHandlerIsHandledOnce(t *testing.T) {
	for name, fifo := range map[string]bool{"FIFO": true, "standard": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := sqstest.Start(t)
			slowHandler(t, 5*time.Second, func() *Driver { return newDriver(t, server.URL(), func(o *Options) { o.FIFO = fifo }) })
		})
	}
}

func TestRealSlowHandlerIsHandledOnce(t *testing.T) {
	t.Parallel()
	url := drivertest.Server(t, "TIDINGS_ELASTICMQ_URL")
	namespace := newNamespace(t, url)
	slowHandler(t, 40*time.Second, func() *Driver {
		return newDriver(t, url, func(o *Options) { o.Namespace, o.VisibilityTimeout = namespace, 10*time.Second })
	})
}

// Requests carry ten messages each where there are as many.
func TestCallsPerEvent(t *testing.T) {
	for name, fifo := range map[string]bool{"FIFO": true, "standard": false} {
		t.Run(name, func(t *testing.T) {
			const publishers, each = 50, 100
			server := sqstest.Start(t)
			d := newDriver(t, server.URL(), func(o *Options) { o.FIFO, o.VisibilityTimeout = fifo, time.Minute })
			b := tidings.New(d, quiet())
			var handled atomic.Int64
			b.Module("counts").Subscribe("all", nil, counted.On(func(context.Context, tidings.Event[countPayload]) error {
				handled.Add(1)
				return nil
			}))
			var publishing sync.WaitGroup
			for publisher := range publishers {
				publishing.Go(func() {
					for n := range each {
						if err := b.Publish(context.Background(), counted.New(fmt.Sprint("a-", publisher, "-", n%10), countPayload{n})); err != nil {
							t.Errorf("Publish: %v", err)
						}
					}
				})
			}
			publishing.Wait()
			sent := float64(server.Calls("SendMessageBatch")+server.Calls("SendMessage")) / (publishers * each)
			server.ResetCalls()
			ctx, stop := context.WithCancel(t.Context())
			ended := make(chan error, 1)
			go func() { ended <- b.Run(ctx) }()
			drivertest.Eventually(t, "all are handled", func() bool { return handled.Load() == publishers*each })
			stop()
			if err := <-ended; err != nil {
				t.Errorf("Run: %v", err)
			}
			got := float64(server.Calls("ReceiveMessage")+server.Calls("DeleteMessageBatch")+server.Calls("DeleteMessage")) / (publishers * each)
			t.Logf("calls per event: %.3f to send, %.3f to receive and delete", sent, got)
			if sent > 0.11 || got > 0.25 {
				t.Errorf("calls per event: %.3f to send, at most 0.11; %.3f to receive and delete, at most 0.25", sent, got)
			}
		})
	}
}

// A batch that is refused in part is an error for those messages, and for what was
// to follow them in their group.
func TestPartialBatchFailure(t *testing.T) {
	server := sqstest.Start(t)
	d := newDriver(t, server.URL())
	publish(t, d, message("a.b.c", "k", "first"))
	server.RefuseMessages(func(body string) error {
		if body == "3" {
			return &sqstest.Error{Code: "InternalError", Message: "no"}
		}
		return nil
	})
	var messages []driver.Message
	for n := range 10 {
		messages = append(messages, message("a.b.c", fmt.Sprint("k", n), fmt.Sprint(n)))
	}
	messages = append(messages, message("a.b.c", "k3", "behind"), message("a.b.c", "k4", "behind another"))
	var failed *driver.PublishError
	if err := d.Publish(t.Context(), messages); !errors.As(err, &failed) {
		t.Fatalf("Publish: %v", err)
	}
	for n, r := range failed.Results {
		want := driver.Stored
		if messages[n].Key == "k3" {
			want = driver.NotStored
		}
		if r.State != want || (r.Err == nil) != (want == driver.Stored) {
			t.Errorf("message %d: %v, %v", n, r.State, r.Err)
		}
	}
}

// SQS takes ten attributes. What observers add beyond is left out.
func TestTenAttributes(t *testing.T) {
	server := sqstest.Start(t)
	d := newDriver(t, server.URL())
	many := message("a.b.c", "k", "1")
	for n := range 10 {
		many.Headers = append(many.Headers, driver.Header{Name: fmt.Sprint("h", n), Value: "x"})
	}
	if err := d.Publish(t.Context(), []driver.Message{many}); err == nil || !strings.Contains(err.Error(), "11 headers") || server.Calls("SendMessageBatch") > 0 {
		t.Errorf("eleven headers: %v, %d calls", err, server.Calls("SendMessageBatch"))
	}
	options := quiet()
	options.Observers = []tidings.Observer{chatty{}}
	b := tidings.New(d, options)
	if err := b.Publish(t.Context(), counted.New("a", countPayload{1})); err != nil {
		t.Errorf("Publish with an observer that adds twelve headers: %v", err)
	}
}

type chatty struct{}

func (chatty) Observe(context.Context, tidings.Observation) {}

func (chatty) ObservePublish(ctx context.Context, p *tidings.Publication) (context.Context, func(error)) {
	for n := range 12 {
		p.SetHeader(0, fmt.Sprint("extra", n), "x")
	}
	return ctx, func(error) {}
}

// Several event types on one queue of the caller's own; one of them nobody handles.
func TestQueueOfTheCaller(t *testing.T) {
	server := sqstest.Start(t)
	c := client(server.URL(), nil)
	made, err := c.CreateQueue(t.Context(), &sqs.CreateQueueInput{QueueName: aws.String("everything")})
	if err != nil {
		t.Fatal(err)
	}
	resolver := func(_ context.Context, eventType string) (string, error) {
		if eventType == "broken.a.b" {
			return "", errors.New("no such queue")
		}
		return *made.QueueUrl, nil
	}
	d := newDriver(t, server.URL(), func(o *Options) { o.FIFO, o.QueueURL, o.UnhandledGrace = false, resolver, 500*time.Millisecond })
	one, two, both := drivertest.NewSink(), drivertest.NewSink(), drivertest.NewSink()
	subscribeAll := func(name string, s *drivertest.Sink, types ...string) driver.Consumer {
		t.Helper()
		c, err := d.Subscribe(t.Context(), subscription(name, types...), s)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	consumers := []driver.Consumer{subscribeAll("x.one", one, "a.b.c"), subscribeAll("x.two", two, "d.e.f"), subscribeAll("x.both", both, "a.b.c", "d.e.f")}
	ctx, stop := context.WithCancel(t.Context())
	var running sync.WaitGroup
	for _, c := range consumers {
		running.Go(func() {
			if err := c.Run(ctx); err != nil {
				t.Errorf("Run: %v", err)
			}
		})
	}
	if _, err := d.Subscribe(t.Context(), subscription("x.broken", "broken.a.b"), drivertest.NewSink()); err == nil || !strings.Contains(err.Error(), "no such queue") {
		t.Errorf("the resolver fails: %v", err)
	}
	publish(t, d, message("a.b.c", "k", "1"), message("d.e.f", "k", "2"), message("g.h.i", "k", "nobody's"))
	drivertest.Eventually(t, "each has its own", func() bool { return one.Count() >= 1 && two.Count() >= 1 && both.Count() >= 2 })
	if len(one.Reports(driver.ReportIgnored)) == 0 || len(both.Reports(driver.ReportWarning)) == 0 {
		t.Error("neither the type that nobody handles nor the shared queue is reported")
	}
	drivertest.Eventually(t, "what nobody handles is given up", func() bool { return one.Count() == 2 })
	if got := one.Got()[1]; got.GiveUp != unhandledReason || string(got.Body) != "nobody's" {
		t.Errorf("got %+v", got)
	}
	for _, got := range both.Got() {
		if got.Channel != got.Headers.Get(driver.HeaderEventType) {
			t.Errorf("%s has channel %s", got.Body, got.Channel)
		}
	}
	settle := func(c driver.Consumer, s *drivertest.Sink) {
		t.Helper()
		if err := c.Settle(t.Context(), drivertest.Finished(s.Got()...)); err != nil {
			t.Errorf("Settle: %v", err)
		}
	}
	left := func() string {
		about, err := c.GetQueueAttributes(t.Context(), &sqs.GetQueueAttributesInput{QueueUrl: made.QueueUrl, AttributeNames: []types.QueueAttributeName{"All"}})
		if err != nil {
			t.Fatal(err)
		}
		return about.Attributes["ApproximateNumberOfMessages"] + " " + about.Attributes["ApproximateNumberOfMessagesNotVisible"]
	}
	settle(consumers[2], both)
	if got := left(); got != "0 3" {
		t.Errorf("%s messages are left, one of two has finished them", got)
	}
	settle(consumers[0], one)
	settle(consumers[1], two)
	if got := left(); got != "0 0" {
		t.Errorf("%s messages are left", got)
	}
	stop()
	running.Wait()
	for _, c := range consumers {
		if err := c.Close(t.Context()); err != nil {
			t.Errorf("Close: %v", err)
		}
	}
}

// What one of two subscriptions gave back comes again to that one alone.
func TestGivenBackByOne(t *testing.T) {
	server := sqstest.Start(t)
	d := newDriver(t, server.URL())
	one, two := drivertest.NewSink(), drivertest.NewSink()
	c, err := d.Subscribe(t.Context(), subscription("x.one", "a.b.c"), one)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	go func() { _ = c.Run(ctx) }()
	r := drivertest.Start(t, d, subscription("x.two", "a.b.c"), two)
	publish(t, d, message("a.b.c", "k", "1"))
	drivertest.Eventually(t, "both", func() bool { return one.Count() == 1 && two.Count() == 1 })
	r.Finish(t, two.Got()...)
	began := time.Now()
	if err := c.Settle(t.Context(), []driver.Settlement{{Ref: one.Got()[0].Ref, Outcome: driver.Released, After: time.Second}}); err != nil {
		t.Fatal(err)
	}
	drivertest.Eventually(t, "again", func() bool { return one.Count() == 2 })
	if took := time.Since(began); took < 900*time.Millisecond {
		t.Errorf("after %v", took)
	}
	if err := c.Settle(t.Context(), drivertest.Finished(one.Got()[1])); err != nil {
		t.Fatal(err)
	}
	if two.Count() != 1 {
		t.Errorf("the other one was given it %d times", two.Count())
	}
	stop()
	if err := c.Close(t.Context()); err != nil {
		t.Errorf("Close: %v", err)
	}
}

// At the end a running poll is left to finish, and what it brings is given back at
// once.
func TestShutdownGivesBack(t *testing.T) {
	server := sqstest.Start(t)
	d := newDriver(t, server.URL(), func(o *Options) { o.VisibilityTimeout, o.PollWait = time.Minute, 5*time.Second })
	s := drivertest.NewSink()
	r := drivertest.Start(t, d, subscription("x.y", "a.b.c"), s)
	drivertest.Eventually(t, "a poll", func() bool { return server.Calls("ReceiveMessage") > 0 })
	r.StopRun(t)
	publish(t, d, message("a.b.c", "k", "1"))
	began := time.Now()
	r.End(t)
	if took := time.Since(began); took > 4*time.Second {
		t.Errorf("Close took %v", took)
	}
	if s.Count() > 0 {
		t.Error("delivered after the end of Run")
	}
	next := drivertest.NewSink()
	n := drivertest.Start(t, newDriver(t, server.URL()), subscription("x.y", "a.b.c"), next)
	drivertest.Eventually(t, "the next process has it at once", func() bool { return next.Count() == 1 })
	n.Finish(t, next.Got()...)
}

func TestTooLargeSaysWhichLimit(t *testing.T) {
	server := sqstest.Start(t)
	huge := message("a.b.c", "k", "x")
	huge.Body = []byte(strings.Repeat("x", 1<<20))
	if err := newDriver(t, server.URL()).Publish(t.Context(), []driver.Message{huge}); !errors.Is(err, driver.ErrTooLarge) || !strings.Contains(err.Error(), "SQS takes 1048576") {
		t.Errorf("SQS: %v", err)
	}
	d := newDriver(t, server.URL(), func(o *Options) { o.Topics = topicClient(server.URL(), nil) })
	d.found["topic "+d.BrokerName("a.b.c")] = &destination{name: "t", topic: "arn:t", limit: topicLimit}
	if err := d.Publish(t.Context(), []driver.Message{huge}); !errors.Is(err, driver.ErrTooLarge) || !strings.Contains(err.Error(), "SNS takes 262144") {
		t.Errorf("SNS: %v", err)
	}
	if d.Features().MaxSize >= topicLimit {
		t.Errorf("MaxSize %d behind a topic", d.Features().MaxSize)
	}
}

func TestProvisionNever(t *testing.T) {
	server := sqstest.Start(t)
	d := newDriver(t, server.URL(), func(o *Options) { o.Provision = ProvisionNever })
	_, err := d.Subscribe(t.Context(), subscription("x.y", "a.b.c", "d.e.f"), drivertest.NewSink())
	if err == nil {
		t.Fatal("accepted")
	}
	for _, part := range []string{"sqs: ", "x.y", "events-a-b-c.fifo", "events-d-e-f.fifo", "ProvisionNever"} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("no %q in %v", part, err)
		}
	}
	if n := server.Calls("CreateQueue"); n > 0 {
		t.Errorf("%d queues were made", n)
	}
}

// Queues that the driver makes keep messages for 14 days, and have a dead letter
// queue of their kind.
func TestProvision(t *testing.T) {
	server := sqstest.Start(t)
	c := client(server.URL(), nil)
	d := newDriver(t, server.URL(), func(o *Options) { o.Namespace = "shop" })
	publish(t, d, message("a.b.c", "k", "1"))
	for _, name := range []string{"shop-events-a-b-c.fifo", "shop-events-a-b-c-dead.fifo"} {
		found, err := c.GetQueueUrl(t.Context(), &sqs.GetQueueUrlInput{QueueName: &name})
		if err != nil {
			t.Fatal(err)
		}
		about, err := c.GetQueueAttributes(t.Context(), &sqs.GetQueueAttributesInput{QueueUrl: found.QueueUrl, AttributeNames: []types.QueueAttributeName{"All"}})
		if err != nil {
			t.Fatal(err)
		}
		if days := about.Attributes["MessageRetentionPeriod"]; days != "1209600" {
			t.Errorf("%s keeps messages for %s seconds", name, days)
		}
		if policy := about.Attributes["RedrivePolicy"]; !strings.Contains(name, "dead") && !strings.Contains(policy, `"maxReceiveCount":"1000"`) {
			t.Errorf("%s has redrive policy %s", name, policy)
		}
	}
}

func TestOptions(t *testing.T) {
	_, err := New(Options{Namespace: "a.b", MaxEvents: -1, PollWait: 21 * time.Second, VisibilityTimeout: time.Millisecond, Provision: 7})
	if err == nil {
		t.Fatal("accepted")
	}
	for _, part := range []string{"sqs: ", "Client", "Namespace", "MaxEvents is -1", "PollWait is 21s", "VisibilityTimeout is 1ms", "Provision is 7"} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("no %q in %v", part, err)
		}
	}
}

func TestIdentifiersAndTexts(t *testing.T) {
	for id, want := range map[string]string{"user-1": "user-1", "a/b:c": "a/b:c", strings.Repeat("x", 128): strings.Repeat("x", 128)} {
		if got := identifier(id); got != want {
			t.Errorf("%q became %q", id, got)
		}
	}
	for _, id := range []string{"", "with space", "é", strings.Repeat("x", 129)} {
		if got := identifier(id); len(got) != 64 {
			t.Errorf("%q became %q", id, got)
		}
	}
	if got, err := text([]byte("{\"a\":\"\uffff\"}")); err != nil || got != `{"a":"\uffff"}` {
		t.Errorf("got %s: %v", got, err)
	}
	for _, bad := range []string{"\xff", "a\x00b", "\uffff"} {
		if _, err := text([]byte(bad)); !errors.Is(err, errContent) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func TestParse(t *testing.T) {
	wrapped, err := json.Marshal(map[string]any{
		"Type": "Notification", "TopicArn": "arn:aws:sns:us-east-1:0:t", "Message": `{"n":1}`,
		"MessageAttributes": map[string]any{"eventType": map[string]string{"Type": "String", "Value": "a.b.c"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		message  types.Message
		wantType string
		wantBody string
	}{
		"wrapped by SNS": {types.Message{Body: aws.String(string(wrapped))}, "a.b.c", string(wrapped)},
		"raw": {types.Message{Body: aws.String(`{"n":1}`), MessageAttributes: attributeValues(driver.Headers{{Name: "eventType", Value: "a.b.c"}})},
			"a.b.c", `{"n":1}`},
		"the type in the body": {types.Message{Body: aws.String(`{"eventType":"d.e.f"}`)}, "d.e.f", `{"eventType":"d.e.f"}`},
		"no type":              {types.Message{Body: aws.String(`hello`)}, "", `hello`},
	} {
		in := parse(&test.message)
		if in.eventType != test.wantType || string(in.body) != test.wantBody {
			t.Errorf("%s: type %q, body %s", name, in.eventType, in.body)
		}
	}
}

// A dead letter keeps the event's attributes and what went wrong within ten.
func TestDeadLetters(t *testing.T) {
	server := sqstest.Start(t)
	d := newDriver(t, server.URL(), func(o *Options) { o.Namespace = "n" })
	letter := driver.DeadLetter{
		Subscription: "x.y", Channel: "a.b.c", Type: "a.b.c", ID: "id-1", AggregateID: "k", Reason: "permanent", Err: "it failed", Stack: strings.Repeat("s", 50<<10),
		Attempts: 3, FailedAt: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), Body: []byte(`{}`), Headers: driver.Headers{{Name: driver.HeaderEventType, Value: "a.b.c"}},
	}
	for n := range 9 {
		letter.Headers = append(letter.Headers, driver.Header{Name: fmt.Sprint("h", n), Value: "x"})
	}
	large := letter
	large.ID, large.Body = "id-2", []byte(strings.Repeat("x", queueLimit-3000))
	for _, l := range []driver.DeadLetter{letter, large} {
		if err := d.PutDeadLetter(t.Context(), l); err != nil {
			t.Fatal(err)
		}
	}
	got := deadLetters(t, client(server.URL(), nil), "n")
	if len(got) != 2 {
		t.Fatalf("%d letters", len(got))
	}
	for n, l := range []driver.DeadLetter{letter, large} {
		if got[n].ID != l.ID || got[n].Reason != "permanent" || got[n].Attempts != 3 || got[n].Subscription != "x.y" || string(got[n].Body) != string(l.Body) || !got[n].FailedAt.Equal(l.FailedAt) {
			t.Errorf("letter %d: %.200v", n, got[n])
		}
	}
	if got[0].Type != "a.b.c" || got[0].Headers.Get("h8") != "x" || got[0].Err != "it failed" {
		t.Errorf("headers %v, error %q", got[0].Headers, got[0].Err)
	}
	redriven, err := ParseDeadLetter(driver.Headers{{Name: driver.HeaderEventType, Value: "a.b.c"}, {Name: driver.HeaderEventID, Value: "id-3"}}, []byte("{}"))
	if err != nil || redriven.Reason != "redriven by broker" || redriven.ID != "id-3" {
		t.Errorf("redriven: %+v, %v", redriven, err)
	}
}

// SQS lets a message be invisible for 12 hours in all.
func TestTwelveHours(t *testing.T) {
	h := &held{since: time.Now().Add(-11 * time.Hour), back: true, after: 3 * time.Hour}
	if got := h.change().after; got > time.Hour || got < 50*time.Minute {
		t.Errorf("given back for %v", got)
	}
}

// An event that no subscription of this instance handles goes back to the queue, and
// what came behind it in its group goes with it: another aggregate's does not.
func TestWhatIsBehindAnUnhandledTypeOfItsGroupGoesBackWithIt(t *testing.T) {
	server := sqstest.Start(t)
	d, sink := newDriver(t, server.URL()), drivertest.NewSink()
	consumer, err := d.Subscribe(t.Context(), subscription("x.one", "a.b.c"), sink)
	if err != nil {
		t.Fatal(err)
	}
	other := message("d.e.f", "k", "another release's")
	other.Channel = "a.b.c"
	publish(t, d, message("a.b.c", "k", "before"), other, message("a.b.c", "k", "behind"), message("a.b.c", "elsewhere", "beside"))
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- consumer.Run(ctx) }()
	drivertest.Eventually(t, "the other group goes on, and the type is reported", func() bool {
		return sink.Count() >= 2 && len(sink.Reports(driver.ReportIgnored)) > 0
	})
	var got []string
	for _, delivery := range sink.Got() {
		got = append(got, string(delivery.Body))
	}
	if strings.Join(got, " ") != "before beside" {
		t.Errorf("delivered %q, want \"before beside\"", got)
	}
	stop()
	if err := <-done; err != nil {
		t.Errorf("Run: %v", err)
	}
	if err := consumer.Close(context.WithoutCancel(t.Context())); err != nil {
		t.Errorf("Close: %v", err)
	}
}
