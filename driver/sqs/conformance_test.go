package sqs

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"
	"unicode"
	"unicode/utf16"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/sns"
	"github.com/aws/aws-sdk-go-v2/service/sqs"

	"github.com/tidings-go/tidings/driver"
	"github.com/tidings-go/tidings/driver/drivertest"
	"github.com/tidings-go/tidings/driver/sqs/sqstest"
)

func TestConformance(t *testing.T) {
	t.Parallel()
	t.Run("FIFO", func(t *testing.T) { drivertest.Run(t, conformance(sqstest.Start(t).URL(), true, false)) })
	t.Run("standard", func(t *testing.T) { drivertest.Run(t, conformance(sqstest.Start(t).URL(), false, false)) })
}

// ElasticMQ has FIFO queues as AWS has them, and no topics. Its standard queues are
// those of TestRealKilledInstancesStandard.
func TestRealConformanceElasticMQ(t *testing.T) {
	t.Parallel()
	drivertest.Run(t, conformance(drivertest.Server(t, "TIDINGS_ELASTICMQ_URL"), true, false))
}

// fauxqs has topics. It gives one message of a FIFO group at a time.
func TestRealConformanceFauxqs(t *testing.T) {
	t.Parallel()
	url := drivertest.Server(t, "TIDINGS_FAUXQS_URL")
	t.Run("standard", func(t *testing.T) {
		drivertest.Run(t, conformance(url, false, false, escapeAstral))
	})
	t.Run("topics", func(t *testing.T) { drivertest.Run(t, conformance(url, true, true)) })
}

func BenchmarkDriver(b *testing.B) {
	url := os.Getenv("TIDINGS_ELASTICMQ_URL")
	if url == "" {
		url = sqstest.Start(b).URL()
	}
	drivertest.RunBenchmarks(b, conformance(url, true, false))
}

// slowAnswer is for a server that shares two cores with its tests.
const slowAnswer = 30 * time.Second

var namespaces atomic.Int64

func conformance(url string, fifo, topics bool, change ...func(*sqs.Options)) drivertest.Harness {
	// make mutants shortens it: what it breaks never comes.
	shorter, _ := time.ParseDuration(os.Getenv("TIDINGS_TEST_PATIENCE"))
	timeout := 5 * time.Second
	if url == os.Getenv("TIDINGS_ELASTICMQ_URL") {
		timeout = 10 * time.Second // it answers late where it shares two cores with its tests
	}
	// Many of these tests run at once, on few cores.
	return drivertest.Harness{Patience: shorter, TimeScale: 4, Events: 2_400, NewBroker: func(t testing.TB) drivertest.Broker {
		namespace := newNamespace(t, url)
		line := &drivertest.Line{}
		plain := client(url, nil)
		return drivertest.Broker{
			Open: func(t testing.TB) driver.Driver {
				o := Options{Client: client(url, line, change...), Namespace: namespace, FIFO: fifo, VisibilityTimeout: timeout, PollWait: time.Second, RequestTimeout: slowAnswer, UnhandledGrace: -1}
				if topics {
					o.Topics = topicClient(url, line)
				}
				d, err := New(o)
				if err != nil {
					t.Fatal(err)
				}
				return d
			},
			PutRaw:      func(t testing.TB, m driver.Message) { putRaw(t, plain, namespace, fifo, m) },
			DeadLetters: func(t testing.TB) []driver.DeadLetter { return deadLetters(t, plain, namespace) },
			Interrupt:   line.Interrupt,
		}
	}}
}

func newNamespace(t testing.TB, url string) string {
	namespace := fmt.Sprintf("c%d-%d", time.Now().UnixNano()%1e12, namespaces.Add(1))
	t.Cleanup(func() { removeNamespace(t, client(url, nil), namespace) })
	return namespace
}

func httpClient(line *drivertest.Line) *http.Client {
	transport := &http.Transport{MaxIdleConnsPerHost: 64}
	if line != nil {
		transport.DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
			return line.Dial(ctx, network, address)
		}
	}
	return &http.Client{Transport: transport}
}

var static = credentials.NewStaticCredentialsProvider("test", "test", "")

func client(url string, line *drivertest.Line, change ...func(*sqs.Options)) *sqs.Client {
	return sqs.New(sqs.Options{BaseEndpoint: aws.String(url), Region: "us-east-1", Credentials: static, HTTPClient: httpClient(line), RetryMaxAttempts: 1}, change...)
}

func topicClient(url string, line *drivertest.Line) *sns.Client {
	return sns.New(sns.Options{BaseEndpoint: aws.String(url), Region: "us-east-1", Credentials: static, HTTPClient: httpClient(line), RetryMaxAttempts: 1})
}

// escapeAstral steps around a defect of fauxqs: it refuses bodies with characters
// above U+FFFF, which SQS takes. In JSON they can be written otherwise.
func escapeAstral(o *sqs.Options) {
	o.DisableMessageChecksumValidation = true
	o.HTTPClient = &http.Client{Transport: escaping{o.HTTPClient.(*http.Client).Transport}}
}

type escaping struct{ http.RoundTripper }

func (e escaping) RoundTrip(r *http.Request) (*http.Response, error) {
	var request map[string]any
	if strings.HasSuffix(r.Header.Get("X-Amz-Target"), ".SendMessageBatch") {
		if err := json.NewDecoder(r.Body).Decode(&request); err != nil {
			return nil, err
		}
		for _, entry := range request["Entries"].([]any) {
			entry := entry.(map[string]any)
			var b strings.Builder
			for _, c := range entry["MessageBody"].(string) {
				if high, low := utf16.EncodeRune(c); high != unicode.ReplacementChar {
					fmt.Fprintf(&b, `\u%04x\u%04x`, high, low)
				} else {
					b.WriteRune(c)
				}
			}
			entry["MessageBody"] = b.String()
		}
		body, err := json.Marshal(request)
		if err != nil {
			return nil, err
		}
		r = r.Clone(r.Context())
		r.Body, r.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
	}
	return e.RoundTripper.RoundTrip(r)
}

// queueURLs lists the queues of a namespace.
func queueURLs(t testing.TB, c *sqs.Client, namespace string) []string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	all, err := c.ListQueues(ctx, &sqs.ListQueuesInput{QueueNamePrefix: aws.String(namespace + "-")})
	if err != nil {
		t.Errorf("ListQueues: %v", err)
		return nil
	}
	return all.QueueUrls
}

func removeNamespace(t testing.TB, c *sqs.Client, namespace string) {
	for _, url := range queueURLs(t, c, namespace) {
		if _, err := c.DeleteQueue(context.Background(), &sqs.DeleteQueueInput{QueueUrl: &url}); err != nil {
			t.Errorf("DeleteQueue: %v", err)
		}
	}
}

// putRaw sends a message with a plain client, to the queues of a channel that
// exist: behind a topic each subscription has one.
func putRaw(t testing.TB, c *sqs.Client, namespace string, fifo bool, m driver.Message) {
	t.Helper()
	name := namespace + "-events-" + strings.ReplaceAll(m.Channel, ".", "-")
	put := 0
	for _, url := range queueURLs(t, c, namespace) {
		if queue := nameOf(url); !strings.HasPrefix(queue, name) || strings.Contains(queue, "-dead") {
			continue
		}
		put++
		in := &sqs.SendMessageInput{QueueUrl: &url, MessageBody: aws.String(string(m.Body)), MessageAttributes: attributeValues(m.Headers)}
		if fifo {
			in.MessageGroupId, in.MessageDeduplicationId = aws.String(identifier(m.Key)), aws.String(fmt.Sprint("raw-", namespaces.Add(1)))
		}
		if _, err := c.SendMessage(t.Context(), in); err != nil {
			t.Fatal(err)
		}
	}
	if put == 0 {
		t.Fatalf("no queue of %s", name)
	}
}

// deadLetters reads the dead letter queues of a namespace, as an operator would
// look into them: what is read becomes visible again.
func deadLetters(t testing.TB, c *sqs.Client, namespace string) []driver.DeadLetter {
	t.Helper()
	var letters []driver.DeadLetter
	for _, url := range queueURLs(t, c, namespace) {
		if !strings.Contains(nameOf(url), "-dead") {
			continue
		}
		receipts := make(map[string]*string)
		for {
			got, err := c.ReceiveMessage(t.Context(), &sqs.ReceiveMessageInput{QueueUrl: &url, MaxNumberOfMessages: 10, VisibilityTimeout: 20, MessageAttributeNames: []string{"All"}})
			if err != nil {
				t.Fatal(err)
			}
			if len(got.Messages) == 0 {
				break
			}
			for n := range got.Messages {
				m := &got.Messages[n]
				receipts[*m.MessageId] = m.ReceiptHandle
				in := parse(m)
				letter, err := ParseDeadLetter(in.headers, in.body)
				if err != nil {
					t.Error(err)
				}
				letters = append(letters, letter)
			}
		}
		for _, id := range slices.Sorted(maps.Keys(receipts)) {
			if _, err := c.ChangeMessageVisibility(t.Context(), &sqs.ChangeMessageVisibilityInput{QueueUrl: &url, ReceiptHandle: receipts[id], VisibilityTimeout: 0}); err != nil {
				t.Errorf("giving back: %v", err)
			}
		}
	}
	return letters
}
