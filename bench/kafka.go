package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/tidings-go/tidings"
	"github.com/tidings-go/tidings/driver/kafka"
)

const (
	batch   = 100     // events per Publish
	batches = 100     // calls per round, of events of a hundred aggregates
	backlog = 100_000 // events that wait for a new subscription
)

// onKafka compares with franz-go itself, on the broker at the addresses.
func onKafka(ctx context.Context, out io.Writer, rounds int, brokers string) (below int, err error) {
	addresses := strings.Split(brokers, ",")
	client, err := kgo.NewClient(kgo.SeedBrokers(addresses...), kgo.ProducerLinger(0))
	if err != nil {
		return 0, err
	}
	defer client.Close()
	namespace := fmt.Sprintf("bench-%d", time.Now().UnixNano())
	topic := namespace + ".events.identity-user-created"
	raw := namespace + ".raw"
	admin := kadm.NewClient(client)
	for _, name := range []string{topic, raw} {
		if _, err := admin.CreateTopic(ctx, 8, -1, nil, name); err != nil {
			return 0, fmt.Errorf("create topic %s: %w", name, err)
		}
	}
	defer func() {
		_, removeErr := admin.DeleteTopics(context.WithoutCancel(ctx), topic, raw)
		err = errors.Join(err, removeErr)
	}()
	k := &kafkaBench{addresses: addresses, namespace: namespace, client: client, topic: topic, raw: raw}
	publisher, err := k.bus()
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, publisher.Close(context.WithoutCancel(ctx))) }()

	fmt.Fprintf(out, "\nKafka at %s: Publish of %d events\n\n", brokers, batch)
	below, err = compare(ctx, out, rounds, []side{
		{name: "franz-go ProduceSync, 100 keys", run: k.produce(publisher, len(aggregates), batches)},
		{name: "Publish, 100 aggregates", run: k.publish(publisher, len(aggregates), batches), against: "franz-go ProduceSync, 100 keys", bound: 0.6},
		{name: "franz-go ProduceSync, 1 key", run: k.produce(publisher, 1, batches/10)},
		{name: "Publish, 1 aggregate", run: k.publish(publisher, 1, batches/10), against: "franz-go ProduceSync, 1 key"},
	})
	if err != nil {
		return below, err
	}
	for have := 0; have < backlog; have += batch * batches {
		for _, run := range []func(context.Context) (int, time.Duration, error){k.produce(publisher, len(aggregates), batches), k.publish(publisher, len(aggregates), batches)} {
			if _, _, err := run(ctx); err != nil {
				return below, err
			}
		}
	}
	fmt.Fprintf(out, "\nKafka at %s: a backlog of %d events, joining the group included\n\n", brokers, backlog)
	more, err := compare(ctx, out, rounds, []side{
		{name: "franz-go poll and one JSON decode", run: k.poll},
		{name: "typed no-op handler", run: k.handle, against: "franz-go poll and one JSON decode", bound: 0.4},
	})
	return below + more, err
}

type kafkaBench struct {
	addresses       []string
	namespace       string
	client          *kgo.Client
	topic, raw      string
	groups, members atomic.Int64
}

func (k *kafkaBench) bus() (*tidings.Bus, error) {
	d, err := kafka.New(kafka.Options{Brokers: k.addresses, Namespace: k.namespace})
	if err != nil {
		return nil, err
	}
	return tidings.New(d, &tidings.Options{Logger: quiet()}), nil
}

func events(keys int) []tidings.DomainEvent {
	list := make([]tidings.DomainEvent, batch)
	for n := range list {
		list[n] = created.New(aggregates[n%keys], sample)
	}
	return list
}

func (k *kafkaBench) publish(bus *tidings.Bus, keys, calls int) func(context.Context) (int, time.Duration, error) {
	return func(ctx context.Context) (int, time.Duration, error) {
		for range calls {
			if err := bus.Publish(ctx, events(keys)...); err != nil {
				return 0, 0, err
			}
		}
		return calls * batch, 0, nil
	}
}

// produce sends the same bytes with the client alone; they are encoded once.
func (k *kafkaBench) produce(bus *tidings.Bus, keys, calls int) func(context.Context) (int, time.Duration, error) {
	return func(ctx context.Context) (int, time.Duration, error) {
		messages, err := bus.Encode(ctx, events(keys)...)
		if err != nil {
			return 0, 0, err
		}
		for range calls {
			records := make([]*kgo.Record, len(messages))
			for n, m := range messages {
				records[n] = &kgo.Record{Topic: k.raw, Key: []byte(m.Key), Value: m.Body}
				for _, h := range m.Headers {
					records[n].Headers = append(records[n].Headers, kgo.RecordHeader{Key: h.Name, Value: []byte(h.Value)})
				}
			}
			if err := k.client.ProduceSync(ctx, records...).FirstErr(); err != nil {
				return 0, 0, err
			}
		}
		return calls * batch, 0, nil
	}
}

// poll reads the raw topic in a new group, decoding the whole value once.
func (k *kafkaBench) poll(ctx context.Context) (int, time.Duration, error) {
	client, err := kgo.NewClient(kgo.SeedBrokers(k.addresses...), kgo.ConsumeTopics(k.raw), kgo.ConsumerGroup(fmt.Sprintf("%s.raw-%d", k.namespace, k.groups.Add(1))),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	if err != nil {
		return 0, 0, err
	}
	defer client.Close()
	started, seen := time.Now(), 0
	for seen < backlog {
		fetches := client.PollFetches(ctx)
		if err := fetches.Err0(); err != nil {
			return 0, 0, err
		}
		for _, record := range fetches.Records() {
			var e struct {
				ID          string      `json:"id"`
				AggregateID string      `json:"aggregateId"`
				EventType   string      `json:"eventType"`
				OccurredAt  time.Time   `json:"occurredAt"`
				Version     int         `json:"version"`
				Payload     userCreated `json:"payload"`
			}
			if err := json.Unmarshal(record.Value, &e); err != nil {
				return 0, 0, err
			}
			seen++
		}
	}
	return seen, time.Since(started), nil
}

// handle reads the other topic with a new subscription of a new process's bus.
func (k *kafkaBench) handle(ctx context.Context) (int, time.Duration, error) {
	bus, err := k.bus()
	if err != nil {
		return 0, 0, err
	}
	var handled atomic.Int64
	all := make(chan struct{})
	bus.Module("billing").Subscribe(fmt.Sprintf("backlog-%d", k.members.Add(1)), &tidings.SubscribeOptions{StartAt: tidings.StartBeginning},
		created.On(func(context.Context, tidings.Event[userCreated]) error {
			if handled.Add(1) == backlog {
				close(all)
			}
			return nil
		}))
	running, stop := context.WithCancel(ctx)
	defer stop()
	started := time.Now()
	done := make(chan error, 1)
	go func() { done <- bus.Run(running) }()
	select {
	case <-all:
	case err := <-done:
		return 0, 0, errors.Join(err, errors.New("the bus ended"))
	}
	took := time.Since(started)
	stop()
	return backlog, took, <-done
}
