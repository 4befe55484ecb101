//go:build unix

package guarantees

import (
	"cmp"
	"context"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	awssqs "github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/redis/rueidis"

	"github.com/tidings-go/tidings"
	"github.com/tidings-go/tidings/driver"
	"github.com/tidings-go/tidings/driver/drivertest"
	"github.com/tidings-go/tidings/driver/drivertest/faults"
	"github.com/tidings-go/tidings/driver/memory"
	"github.com/tidings-go/tidings/driver/redis"
	"github.com/tidings-go/tidings/driver/redis/streams"
	"github.com/tidings-go/tidings/driver/sqs"
)

// worlds are the drivers of the table, without servers of their own.
func worlds() []faults.World {
	return []faults.World{onKafka, onKafkaThree, onSQS, onStreams, onStreamsWeak, onPostgresWorld, onPostgresClock, onSQLiteWorld, onRedis, onMemory, onMemoryAsync}
}

// through puts a line into an address.
func through(address, line string) string {
	if line == "" {
		return address
	}
	before, rest, found := strings.Cut(address, "://")
	if !found {
		return line
	}
	user, rest, found := strings.Cut(rest, "@")
	if !found {
		user, rest = "", user
	} else {
		user += "@"
	}
	_, path, found := strings.Cut(rest, "/")
	if found {
		path = "/" + path
	}
	return before + "://" + user + line + path
}

// brokerWorld is a broker whose handlers write into PostgreSQL, through the inbox.
func brokerWorld(w faults.World, open func(place faults.Place) (driver.Driver, error), prepare func(t testing.TB, place *faults.Place)) faults.World {
	w.Separate = true
	w.Enter = func(ctx context.Context, place faults.Place, trap *faults.Trap) (*faults.Parts, error) {
		a, err := onPostgres(ctx, place)
		if err != nil {
			return nil, err
		}
		d, err := open(place)
		if err != nil {
			return nil, err
		}
		return &faults.Parts{Driver: d, Options: tidings.Options{Lanes: a.store.Lanes()}, Subscribe: subscribe(), React: a.react(trap), Close: a.close}, nil
	}
	w.Prepare = func(t testing.TB) faults.Place {
		place := newSchema(t, drivertest.Server(t, "TIDINGS_POSTGRES_URL"))
		prepare(t, &place)
		return place
	}
	w.Effects = effectsOf(onPostgres)
	return w
}

var onKafka = brokerWorld(faults.World{Name: "kafka", Session: sessionTimeout}, newKafka, func(t testing.TB, place *faults.Place) {
	place.Broker = drivertest.Server(t, "KAFKA_BROKERS")
	removeAfter(t, *place, removeKafka)
})

// onKafkaThree has three brokers, of which one is lost.
var onKafkaThree = brokerWorld(faults.World{Name: "kafka, 3 brokers, one lost", Session: sessionTimeout, BrokerOnly: true}, newKafka, func(t testing.TB, place *faults.Place) {
	place.Broker = drivertest.Server(t, "TIDINGS_KAFKA3_BROKERS")
})

func removeAfter(t testing.TB, place faults.Place, remove func(testing.TB, faults.Place)) {
	t.Cleanup(func() { remove(t, place) })
}

var onSQS = brokerWorld(faults.World{
	Name: "sqs (FIFO, ElasticMQ)", Session: sessionTimeout, Unnoticed: true,
	Not:      map[string]string{"subscription added under load": "a queue has no history and no fan-out; topics have, and ElasticMQ has no topics"},
	NoServer: "ElasticMQ keeps its queues in memory, and nobody can kill SQS",
}, newQueues, func(t testing.TB, place *faults.Place) {
	place.Broker = drivertest.Server(t, "TIDINGS_ELASTICMQ_URL")
	removeAfter(t, *place, removeQueues)
})

func newQueues(place faults.Place) (driver.Driver, error) {
	o := sqs.Options{
		Client: sqsClient(through(place.Broker, place.BrokerLine)), Namespace: strings.ReplaceAll(place.Namespace, "_", "-"), FIFO: true,
		VisibilityTimeout: cmp.Or(place.Lease, sessionTimeout), PollWait: time.Second,
	}
	if place.BrokerLine != "" { // a silence is found within a time that goes with the short leases
		o.RequestTimeout = 5 * time.Second
	}
	return sqs.New(o)
}

func sqsClient(url string) *awssqs.Client {
	return awssqs.New(awssqs.Options{
		BaseEndpoint: aws.String(url), Region: "us-east-1", RetryMaxAttempts: 1,
		Credentials: credentials.NewStaticCredentialsProvider("test", "test", ""),
		HTTPClient:  &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 64}},
	})
}

func removeQueues(t testing.TB, place faults.Place) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 15*time.Second)
	defer cancel()
	client := sqsClient(place.Broker)
	listed, err := client.ListQueues(ctx, &awssqs.ListQueuesInput{QueueNamePrefix: aws.String(strings.ReplaceAll(place.Namespace, "_", "-"))})
	if err != nil {
		t.Log(err)
		return
	}
	for _, url := range listed.QueueUrls {
		if _, err := client.DeleteQueue(ctx, &awssqs.DeleteQueueInput{QueueUrl: &url}); err != nil {
			t.Log(err)
		}
	}
}

func redisOption(place faults.Place) (rueidis.ClientOption, error) {
	return rueidis.ParseURL(through(place.Broker, place.BrokerLine))
}

func newStreams(place faults.Place) (driver.Driver, error) {
	option, err := redisOption(place)
	if err != nil {
		return nil, err
	}
	return streams.New(streams.Options{Client: option, Namespace: place.Namespace, LeaseTime: cmp.Or(place.Lease, leaseTime)})
}

// What is on the shared server is removed; a server of our own goes as a whole.
var onStreams = brokerWorld(faults.World{Name: "redis-streams", Session: leaseTime}, newStreams, func(t testing.TB, place *faults.Place) {
	place.Broker = drivertest.Server(t, "REDIS_URL")
	removeAfter(t, *place, removeKeys)
})

// onStreamsWeak is the server's default: nothing is written down before a snapshot.
var onStreamsWeak = brokerWorld(faults.World{Name: "redis-streams, weaker: appendonly no", Session: leaseTime, BrokerOnly: true, Weaker: true}, newStreams, func(t testing.TB, place *faults.Place) {
	place.Broker = drivertest.Server(t, "REDIS_URL")
	removeAfter(t, *place, removeKeys)
})

func removeKeys(t testing.TB, place faults.Place) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 15*time.Second)
	defer cancel()
	option, err := rueidis.ParseURL(place.Broker)
	if err != nil {
		t.Log(err)
		return
	}
	option.DisableCache = true
	client, err := rueidis.NewClient(option)
	if err != nil {
		t.Log(err)
		return
	}
	defer client.Close()
	for _, pattern := range []string{place.Namespace + ":*", "{" + place.Namespace + ":*"} {
		keys, err := client.Do(ctx, client.B().Keys().Pattern(pattern).Build()).AsStrSlice()
		if err == nil && len(keys) > 0 {
			err = client.Do(ctx, client.B().Del().Key(keys...).Build()).Error()
		}
		if err != nil {
			t.Log(err)
		}
	}
}

// onRedis is at most once: each instance handles what it hears.
var onRedis = faults.World{
	Name: "redis (at most once)", AtMostOnce: true,
	Not: map[string]string{
		"rebalance while 16 lanes are busy":             "there is no group: each instance handles every event",
		"rolling restart: 1, 3, 1 instances under load": "there is no group: each instance handles every event",
		"settling fails for long":                       "nothing is settled",
		"consumer killed between effect and settle":     "nothing is settled",
		"dead-letter store gone for long":               "what waits is bounded and then dropped: the rows of losses say how much",
	},
	Enter: func(_ context.Context, place faults.Place, _ *faults.Trap) (*faults.Parts, error) {
		option, err := redisOption(place)
		if err != nil {
			return nil, err
		}
		d, err := redis.New(redis.Options{Client: option, Namespace: place.Namespace, ReconnectInterval: 500 * time.Millisecond})
		if err != nil {
			return nil, err
		}
		s := subscribe()
		s.EachInstance = true
		return &faults.Parts{Driver: d, Subscribe: s}, nil
	},
	Prepare: func(t testing.TB) faults.Place {
		place := faults.Place{Namespace: newNamespace(), Broker: drivertest.Server(t, "REDIS_URL")}
		removeAfter(t, place, removeKeys)
		return place
	},
}

var (
	onMemory      = inMemory("in-memory", memory.Options{})
	onMemoryAsync = inMemory("in-memory, Async", memory.Options{Async: true})
)

func inMemory(name string, options memory.Options) faults.World {
	return faults.World{
		Name: name, OneProcess: true, NoServer: "there is no broker",
		Not: map[string]string{"lines": "there is no connection"},
		Enter: func(context.Context, faults.Place, *faults.Trap) (*faults.Parts, error) {
			return &faults.Parts{Driver: memory.New(&options), Subscribe: subscribe()}, nil
		},
		Prepare: func(testing.TB) faults.Place { return faults.Place{Namespace: newNamespace()} },
	}
}
