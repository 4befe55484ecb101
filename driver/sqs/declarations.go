package sqs

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/sqs"

	"github.com/tidings-go/tidings/driver"
)

var _ driver.Declarations = (*Driver)(nil)

// SQS has no place for what a subscription's releases handle but the tags of a queue.
// Each subscription has a queue without messages for them: a tag for each event type.
// A queue has 50 tags at most, and AWS answers 30 calls about tags a second
// (https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/sqs-queue-tags.html).

const (
	// mostDeclared is how many event types the releases of one subscription may handle
	// in all.
	mostDeclared = 50
	// mostTagValue is the length of a tag's value in characters; one has the channel,
	// a space and the event type.
	mostTagValue = 256
	tagPrefix    = "handles:"
	// declaredAnswer bounds how long a receive waits for the record.
	declaredAnswer = 5 * time.Second
)

// DeclarationsName is the queue whose tags say what the releases of a subscription
// handle: "tidings-declarations-", the name with dashes for dots, and a hash that tells
// names apart which dashes make equal.
func (d *Driver) DeclarationsName(subscription string) string {
	first := "tidings-declarations-"
	if d.options.Namespace != "" {
		first = d.options.Namespace + "-" + first
	}
	sum := sha256.Sum256([]byte(subscription))
	last := "-" + hex.EncodeToString(sum[:4])
	name := strings.ReplaceAll(subscription, ".", "-")
	return first + name[:min(len(name), mostQueueName-len(first)-len(last))] + last
}

func declarationTag(one driver.Declaration) (key, value string) {
	value = one.Channel + " " + one.Type
	sum := sha256.Sum256([]byte(value))
	return tagPrefix + hex.EncodeToString(sum[:16]), value
}

// declarationsURL finds the queue of a subscription's record; "" when there is none.
func (d *Driver) declarationsURL(ctx context.Context, subscription string) (string, error) {
	name := d.DeclarationsName(subscription)
	d.mu.Lock()
	known := d.found["declarations "+name]
	d.mu.Unlock()
	if known != nil {
		return known.url, nil
	}
	url, err := d.urlOf(ctx, need{queue: name})
	if url != "" {
		d.remember("declarations "+name, &destination{name: name, url: url})
	}
	return url, err
}

func (d *Driver) remember(what string, found *destination) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if found == nil {
		delete(d.found, what)
		return
	}
	d.found[what] = found
}

// Declare implements [driver.Declarations]. It makes the queue of the record unless
// Options.Provision is ProvisionNever.
func (d *Driver) Declare(ctx context.Context, subscription string, handled []driver.Declaration) ([]driver.Declaration, error) {
	if !d.calls.Enter() {
		return nil, errClosed
	}
	defer d.calls.Leave()
	name := d.DeclarationsName(subscription)
	url, err := d.declarationsURL(ctx, subscription)
	if err != nil {
		return nil, err
	}
	if url == "" {
		if d.options.Provision == ProvisionNever {
			return nil, fmt.Errorf("sqs: subscription %s: queue %s, whose tags say what its releases handle, does not exist, and Options.Provision is ProvisionNever: run `tidings provision`, or make it", subscription, name)
		}
		if url, err = d.createQueue(ctx, name, nil); err != nil {
			return nil, fmt.Errorf("sqs: subscription %s: %w", subscription, err)
		}
		d.remember("declarations "+name, &destination{name: name, url: url})
	}
	all, err := d.readDeclarations(ctx, url)
	if err != nil {
		return nil, fmt.Errorf("sqs: subscription %s: %w", subscription, err)
	}
	tags := make(map[string]string)
	for _, one := range handled {
		key, value := declarationTag(one)
		if len(value) > mostTagValue {
			return nil, fmt.Errorf("sqs: subscription %s: channel %s and type %s are %d characters, and a tag of SQS takes %d: give one a shorter name", subscription, one.Channel, one.Type, len(value), mostTagValue)
		}
		if !slices.Contains(all, one) {
			tags[key] = value
		}
	}
	if len(tags) == 0 {
		return all, nil
	}
	if len(all)+len(tags) > mostDeclared {
		return nil, fmt.Errorf("sqs: subscription %s: its releases handle %d event types, and a queue of SQS has %d tags: take out what no release handles any more (`tidings subscription forget-type %s TYPE`), or make two subscriptions of it", subscription, len(all)+len(tags), mostDeclared, subscription)
	}
	if _, err := d.options.Client.TagQueue(ctx, &sqs.TagQueueInput{QueueUrl: &url, Tags: tags}); err != nil {
		return nil, fmt.Errorf("sqs: subscription %s: queue %s: tag it with what is handled: %w", subscription, name, err)
	}
	all, err = d.readDeclarations(ctx, url)
	if err != nil {
		return nil, fmt.Errorf("sqs: subscription %s: %w", subscription, err)
	}
	for _, one := range handled { // AWS may show a tag a moment later
		if !slices.Contains(all, one) {
			all = append(all, one)
		}
	}
	sortDeclarations(all)
	return all, nil
}

// Declared implements [driver.Declarations].
func (d *Driver) Declared(ctx context.Context, subscription string) ([]driver.Declaration, error) {
	if !d.calls.Enter() {
		return nil, errClosed
	}
	defer d.calls.Leave()
	all, err := d.declared(ctx, subscription)
	if err != nil {
		return nil, fmt.Errorf("sqs: subscription %s: %w", subscription, err)
	}
	return all, nil
}

func (d *Driver) declared(ctx context.Context, subscription string) ([]driver.Declaration, error) {
	url, err := d.declarationsURL(ctx, subscription)
	if url == "" || err != nil {
		return nil, err
	}
	all, err := d.readDeclarations(ctx, url)
	if missing(err) { // it was deleted
		d.remember("declarations "+d.DeclarationsName(subscription), nil)
		return nil, nil
	}
	return all, err
}

func (d *Driver) readDeclarations(ctx context.Context, url string) ([]driver.Declaration, error) {
	out, err := d.options.Client.ListQueueTags(ctx, &sqs.ListQueueTagsInput{QueueUrl: &url})
	if err != nil {
		return nil, fmt.Errorf("queue %s: its tags, which say what is handled: %w", nameOf(url), err)
	}
	var all []driver.Declaration
	for key, value := range out.Tags {
		if channel, eventType, ok := strings.Cut(value, " "); ok && strings.HasPrefix(key, tagPrefix) {
			all = append(all, driver.Declaration{Channel: channel, Type: eventType})
		}
	}
	sortDeclarations(all)
	return all, nil
}

func sortDeclarations(all []driver.Declaration) {
	slices.SortFunc(all, func(a, b driver.Declaration) int {
		return cmp.Or(cmp.Compare(a.Channel, b.Channel), cmp.Compare(a.Type, b.Type))
	})
}

// ForgetType implements [driver.Declarations].
func (d *Driver) ForgetType(ctx context.Context, subscription, eventType string) (known bool, err error) {
	if !d.calls.Enter() {
		return false, errClosed
	}
	defer d.calls.Leave()
	all, err := d.declared(ctx, subscription)
	if err != nil {
		return false, fmt.Errorf("sqs: subscription %s: %w", subscription, err)
	}
	var keys []string
	for _, one := range all {
		if one.Type == eventType {
			key, _ := declarationTag(one)
			keys = append(keys, key)
		}
	}
	if len(keys) == 0 {
		return false, nil
	}
	url, err := d.declarationsURL(ctx, subscription)
	if err == nil {
		_, err = d.options.Client.UntagQueue(ctx, &sqs.UntagQueueInput{QueueUrl: &url, TagKeys: keys})
	}
	if err != nil {
		return false, fmt.Errorf("sqs: subscription %s: forgetting %s: %w", subscription, eventType, err)
	}
	return true, nil
}

// renameDeclarations moves the record of a former name, and reports how many types it
// had.
func (d *Driver) renameDeclarations(ctx context.Context, former, name string) (int64, error) {
	all, err := d.declared(ctx, former)
	if err != nil || len(all) == 0 {
		return 0, err
	}
	if _, err := d.Declare(ctx, name, all); err != nil {
		return 0, err
	}
	_, err = d.deleteDeclarations(ctx, former)
	return int64(len(all)), err
}

// deleteDeclarations deletes the record of a subscription, and reports whether there
// was one.
func (d *Driver) deleteDeclarations(ctx context.Context, subscription string) (bool, error) {
	url, err := d.declarationsURL(ctx, subscription)
	if url == "" || err != nil {
		return false, err
	}
	d.remember("declarations "+d.DeclarationsName(subscription), nil)
	if _, err = d.options.Client.DeleteQueue(ctx, &sqs.DeleteQueueInput{QueueUrl: &url}); err != nil && !missing(err) {
		return false, fmt.Errorf("deleting queue %s: %w", nameOf(url), err)
	}
	return true, nil
}

// recordAge is how old the record of a subscription may be where another subscription
// on the queue handles the type: asking for each message would stop both at the limit
// that AWS has for calls about tags.
const recordAge = 10 * time.Second

// record is what a queue knows of what a subscription on it lacks.
type record struct {
	read  time.Time         // when it was last asked for
	lacks map[string]string // what only other releases handle: the channel of each type
}

// consult reads what is handled of the subscriptions on a queue, where a message has a
// type that one of them lacks here. It reports false when SQS does not answer and
// nobody here handles the type: then nothing of such a type is finished.
func (q *queue) consult(messages []incoming) bool {
	now := time.Now()
	var ask []*consumer
	unhandled := false
	q.mu.Lock()
	for _, m := range messages {
		if m.eventType == "" || len(q.consumers) == 0 {
			continue
		}
		strange := !q.handled(m.eventType) && len(q.lacking(m.eventType)) == 0
		unhandled = unhandled || strange
		for _, c := range q.consumers {
			if !c.handles[m.eventType] && (strange || now.Sub(q.records[c].read) > recordAge) && !slices.Contains(ask, c) {
				ask = append(ask, c)
			}
		}
	}
	q.mu.Unlock()
	for _, c := range ask {
		ctx, cancel := context.WithTimeout(q.life, declaredAnswer)
		all, err := q.driver.declared(ctx, c.subscription.Name)
		cancel()
		q.mu.Lock()
		r := record{now, q.records[c].lacks}
		if err == nil {
			r.lacks = make(map[string]string)
			for _, one := range all {
				if !c.handles[one.Type] && (q.channel == "" || q.channel == one.Channel) {
					r.lacks[one.Type] = one.Channel
				}
			}
		}
		q.records[c] = r
		q.mu.Unlock()
		if err != nil && unhandled {
			q.failed(fmt.Errorf("sqs: what the releases of %s handle: %w", c.subscription.Name, err))
			return false
		}
	}
	return true
}

// handled reports whether a subscription here handles a type. The caller holds the
// lock.
func (q *queue) handled(eventType string) bool {
	return slices.ContainsFunc(q.consumers, func(c *consumer) bool { return eventType == "" || c.handles[eventType] })
}

// lacking are the subscriptions of which only another release handles a type. The
// caller holds the lock.
func (q *queue) lacking(eventType string) (all []*consumer) {
	for _, c := range q.consumers {
		if q.records[c].lacks[eventType] != "" {
			all = append(all, c)
		}
	}
	return all
}
